r"""What a name, a function or a command of LaTeX takes: indices, powers, arguments, limits."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from gmpo.rewards.reading.cursor import END, Cursor, Node, matching, number, split
from gmpo.rewards.reading.limits import Unread
from gmpo.rewards.reading.tokens import CLOSE, FUNCTION, NAME, NUMBER, OPEN, RUN, SIGN, WORD, Token

_CALLED = frozenset(("f", "g", "h", "F", "G", "H", "P", "Q", "W", "phi", "psi", "Phi", "varphi"))
"""Names that a bracket makes a function: `f(x)`. Others are factors: `a(b+c)`."""
FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac", "sfrac", "nicefrac", "flatfrac")
_ACCENTS = ("hat", "vec", "tilde", "bar", "overline", "overrightarrow", "widehat", "dot", "ddot", "widetilde")
_ALPHABETS = ("mathcal", "mathscr", "mathfrak", "mathbb", "Bbb")


class Commands(Cursor):
    """Reads what a command or a name takes."""

    def read_prescript(self) -> Node:
        """`{}_5C_2`."""
        if not self.sign("_", "^"):
            raise Unread("empty braces")
        self.at += 1
        upper = self.read_argument(whole=True)
        kind = self.token
        if kind.kind != NAME or kind.text not in ("C", "P"):
            raise Unread("an index before what is no binomial")
        self.at += 1
        if not self.sign("_"):
            raise Unread("a binomial without its lower number")
        self.at += 1
        return ("fn", "binom" if kind.text == "C" else "perm", upper, self.read_argument(whole=True))

    def read_letters(self, letters: str) -> Node:
        nodes = [self.read_simple(letter) for letter in letters[:-1]] + [self.read_named(letters[-1])]
        node = nodes[0]
        for other in nodes[1:]:
            node = ("*", node, other)
        return node

    def read_simple(self, name: str) -> Node:
        return ("const", name) if name in ("e", "i") else ("var", name)

    def read_named(self, name: str) -> Node:
        """A variable with its index, or a function that is called."""
        if self.sign("_"):
            self.at += 1
            name += "_" + self._index()
            node: Node = ("var", name)
        else:
            node = self.read_simple(name)
        primes = 0
        while self.sign("'"):
            self.at += 1
            primes += 1
        if primes:
            node = ("var", name + "'" * primes)
        if name in ("C", "P") and self.token.kind == OPEN and self.token.text == "(":
            pair = split(self.tokens[self.at + 1 : matching(self.tokens, self.at)], ",")
            if len(pair) == 2:
                self.group()
                return ("fn", "binom" if name == "C" else "perm", self.inner(pair[0]), self.inner(pair[1]))
        if name == "Gamma" and self.token.kind == OPEN and self.token.text == "(":
            return ("fn", "Gamma", self.inner(self.group()))
        called = name.split("_")[0] in _CALLED or self._holds_one_sign()
        if called and self.token.kind == OPEN and self.token.text == "(" and node[0] == "var":
            arguments = split(self.group(), ",")
            return ("call", node[1], *(self.inner(argument) for argument in arguments))
        return node

    def _holds_one_sign(self) -> bool:
        """Whether the next bracket is an argument and no factor: `x(t)`, `I(0)`."""
        inside = self.tokens[self.at : self.at + 3]
        if [t.text for t in inside[::2]] != ["(", ")"] or inside[0].spaced:
            return False
        return inside[1].kind in (NUMBER, NAME)

    def _index(self) -> str:
        """An index as a text without blanks and braces."""
        if self.token.kind == OPEN:
            return "".join(t.text for t in self.group() if t.text not in "{}")
        token = self.token
        if token is END or token.kind not in (NUMBER, NAME, RUN, WORD):
            raise Unread("an index that is none")
        self.at += 1
        return token.text

    def read_bars(self) -> Node:
        """|x|: up to the next bar outside brackets."""
        self.at += 1
        start, depth = self.at, 0
        while self.at < len(self.tokens):
            token = self.token
            depth += (token.kind == OPEN) - (token.kind == CLOSE)
            if depth == 0 and token.kind == SIGN and token.text == "|":
                inside = self.tokens[start : self.at]
                self.at += 1
                return ("fn", "abs", self.inner(inside))
            self.at += 1
        raise Unread("a bar is not closed")

    def read_argument(self, *, whole: bool = False) -> Node:
        """What a command takes: a group, a command, or one sign; of a number its first digit unless `whole`."""
        token = self.token
        if token.kind == OPEN and token.text in ("{", "("):
            if token.text == "{" and matching(self.tokens, self.at) == self.at + 1:
                raise Unread("empty braces")
            return self.bracket()
        if token.kind == NUMBER:
            digits = token.text
            if whole or len(digits) == 1 or not digits.isdigit():
                self.at += 1
                return ("num", token.value, token.decimals)
            self.tokens[self.at] = Token(NUMBER, digits[1:], False, Fraction(int(digits[1:])), -1)
            return number(int(digits[0]))
        if token.kind == NAME:
            self.at += 1
            return self.read_simple(token.text)
        if token.kind == RUN and not whole:
            self.tokens[self.at] = Token(NAME if len(token.text) == 2 else RUN, token.text[1:])
            return self.read_simple(token.text[0])
        return self.atom()

    def read_command(self) -> Node:
        name = self.token.text
        self.at += 1
        self.count()
        if name in FRACTIONS:
            return ("/", self.read_argument(), self.read_argument())
        if name == "sqrt":
            return self._root()
        if name in ("binom", "dbinom", "tbinom"):
            return ("fn", "binom", self.read_argument(), self.read_argument())
        if name in ("lfloor", "lceil"):
            return self._until("rfloor" if name == "lfloor" else "rceil", "floor" if name == "lfloor" else "ceil")
        if name in _ACCENTS and self.token.kind == OPEN:
            return ("var", name + " " + "".join(t.text for t in self.group()))
        if name in _ALPHABETS and self.token.kind == OPEN:
            return self.read_named(name + " " + "".join(t.text for t in self.group()))
        if name in ("sum", "prod"):
            return self._repeated(name)
        raise Unread(rf"\{name} does not belong there")

    def _root(self) -> Node:
        degree = number(2)
        if self.token.kind == OPEN and self.token.text == "[":
            degree = self.inner(self.group())
        return ("fn", "root", self.read_argument(), degree)

    def _until(self, closing: str, name: str) -> Node:
        depth, start = 1, self.at
        opening = "l" + closing[1:]
        while self.at < len(self.tokens):
            depth += self.command(opening) - self.command(closing)
            if depth == 0:
                inside = self.tokens[start : self.at]
                self.at += 1
                return ("fn", name, self.inner(inside))
            self.at += 1
        raise Unread(f"{name} is not closed")

    def read_function(self) -> Node:
        """A function with index, power and argument."""
        name = self.token.text
        self.at += 1
        self.count()
        if name == "sqrt":
            return self._root()
        if name == "cbrt":
            return ("fn", "root", self.read_argument(), number(3))
        if name == "binom":
            parts = split(self.group(), ",") if self.token.text == "(" else []
            if len(parts) == 2:
                return ("fn", "binom", self.inner(parts[0]), self.inner(parts[1]))
            return ("fn", "binom", self.read_argument(), self.read_argument())
        base = power = None
        while self.sign("_", "^"):
            sign = self.token.text
            self.at += 1
            minus = self.sign("-")
            self.at += minus
            found = self.read_argument(whole=True)
            found = ("neg", found) if minus else found
            base, power = (found, power) if sign == "_" else (base, found)
        arguments = self._function_arguments(name)
        if name in ("log", "lg") and base is not None:
            node: Node = ("fn", "log", *arguments, base)
        else:
            node = ("fn", name, *arguments)
        if power is None:
            return node
        if power == ("neg", number(1)) and name in ("sin", "cos", "tan", "cot", "sec", "csc"):
            return ("fn", "arc" + name, *arguments)
        return ("^", node, power)

    def _function_arguments(self, name: str) -> list[Node]:
        token = self.token
        if token.kind == OPEN and token.text in ("(", "[", "{"):
            end = matching(self.tokens, self.at)
            if token.text != "{" or (self.tokens[self.at + 1 : self.at + 2] != [] and end > self.at + 1):
                inside = self.tokens[self.at + 1 : end]
                parts = split(inside, ",")
                if len(parts) > 1 or name in ("gcd", "lcm", "max", "min"):
                    self.at = end + 1
                    return [self.inner(part) for part in parts]
                node = self._raised_argument()
                return [node]
        if name in ("gcd", "lcm", "max", "min", "det", "Re", "Im", "arg"):
            raise Unread(f"{name} without brackets")
        # `\sin 2x` takes factors up to the next sign or function.
        node = self.factor()
        while self.starts_factor() and self.token.kind != FUNCTION and self.token.kind != OPEN:
            node = ("*", node, self.next_to(node))
        return [node]

    def _raised_argument(self) -> Node:
        """A bracketed argument; a degree sign behind it is part of it, a power is not."""
        node = self.bracket()
        if self.sign("deg"):
            self.at += 1
            return ("deg", node)
        if self.sign("^"):
            following = [t.text for t in self.tokens[self.at + 1 : self.at + 4]]
            if following[:1] in (["circ"], ["deg"]):
                self.at += 2
                return ("deg", node)
            if following in (["{", "circ", "}"], ["{", "deg", "}"]):
                self.at += 4
                return ("deg", node)
        return node

    def _repeated(self, name: str) -> Node:
        """A sum or product with its limits and its body, which is the next product."""
        lower: Sequence[Token] = ()
        upper: Node | None = None
        while self.sign("_", "^"):
            sign = self.token.text
            self.at += 1
            if sign == "_":
                if self.token.kind != OPEN:
                    raise Unread("a sum without its first number")
                lower = self.group()
            else:
                upper = self.read_argument(whole=True)
        parts = split(lower, "=")
        if len(parts) != 2 or len(parts[0]) != 1 or parts[0][0].kind != NAME or upper is None:
            raise Unread("a sum without its limits")
        variable = parts[0][0].text
        first = self.inner(parts[1])
        body = _bound(self.product(), variable)
        return (name, variable, first, upper, body)


def _bound(node: Node, variable: str) -> Node:
    """The body of a sum in which its variable is no constant: `i` counts here."""
    if node == ("const", variable):
        return ("var", variable)
    return tuple(_bound(part, variable) if isinstance(part, tuple) else part for part in node)
