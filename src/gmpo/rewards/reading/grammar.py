r"""Tokens -> one expression, by recursive descent.

Expressions are nested tuples, the operator first: `("+", a, b)`. The whole run of tokens must be one expression.
As written by people and by LaTeX: `2\frac14` and `2 1/4` are mixed numbers, `\sin 2x` takes the product, `\frac12` two
digits, `1/2x` is `(1/2)x`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from gmpo.rewards.reading.limits import MAX_DEPTH, MAX_OPERATORS, TooLarge, Unread
from gmpo.rewards.reading.tokens import CLOSE, COMMAND, FUNCTION, NAME, NUMBER, OPEN, RUN, SIGN, WORD, Token

Node = tuple[Any, ...]

PAIRS = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "<": ">"}
_END = Token("end", "")
_CALLED = frozenset(("f", "g", "h", "F", "G", "H", "P", "Q", "W", "phi", "psi", "Phi", "varphi"))
"""Names that a bracket makes a function: `f(x)`. Others are factors: `a(b+c)`."""
_VOWELS = frozenset("aeiouAEIOU")
_SHORT_WORDS = frozenset(
    [
        "no",
        "on",
        "is",
        "it",
        "in",
        "if",
        "so",
        "do",
        "go",
        "he",
        "me",
        "we",
        "us",
        "at",
        "as",
        "am",
        "an",
        "by",
        "be",
        "my",
        "of",
        "or",
        "to",
        "up",
        "ox",
        "hi",
        "ok",
    ]
)
_FRACTIONS = ("frac", "dfrac", "tfrac", "cfrac", "sfrac", "nicefrac", "flatfrac")
_ACCENTS = ("hat", "vec", "tilde", "bar", "overline", "overrightarrow", "widehat", "dot", "ddot", "widetilde")
_ALPHABETS = ("mathcal", "mathscr", "mathfrak", "mathbb", "Bbb")


def number(value: int | Fraction) -> Node:
    """An exact number."""
    return ("num", Fraction(value), -1)


def is_product(letters: str) -> bool:
    """Whether letters that stand together may be a product of variables and not a word."""
    return len(letters) <= 3 or not _VOWELS & set(letters) or set(letters) <= set("abcd")


def is_word(letters: str) -> bool:
    """Whether letters that are a whole answer are a word: `no` is, `xy` is not."""
    if len(letters) == 2:
        return letters.casefold() in _SHORT_WORDS
    return bool(_VOWELS & set(letters)) and not set(letters) <= set("abcd")


def matching(tokens: Sequence[Token], start: int) -> int:
    """Where the bracket that opens at `start` closes. Any two round or square ones match, as in `[1,2)`.

    Raises: Unread.
    """
    stack: list[str] = []
    for at in range(start, len(tokens)):
        token = tokens[at]
        if token.kind == OPEN:
            stack.append(token.text)
            if len(stack) > MAX_DEPTH:
                raise TooLarge(f"brackets {MAX_DEPTH} deep")
        elif token.kind == CLOSE:
            if not stack:
                raise Unread("a bracket closes that did not open")
            opened = stack.pop()
            half_open = opened in "([" and token.text in ")]"
            if not half_open and PAIRS[opened] != token.text:
                raise Unread("the brackets do not match")
            if not stack:
                return at
    raise Unread("a bracket is not closed")


def parse(tokens: Sequence[Token]) -> Node:
    """The expression that all the tokens make. Raises Unread, TooLarge."""
    parser = Parser(tokens)
    node = parser.sum()
    if parser.token is not _END:
        raise Unread(f"{parser.token.text!r} does not belong there")
    return node


class Parser:
    """Reads from the left; `token` is the next one."""

    def __init__(self, tokens: Sequence[Token], depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise TooLarge(f"expressions {MAX_DEPTH} deep")
        self.tokens = list(tokens)
        self.at = 0
        self.depth = depth
        self.inside = depth > 0
        self.in_bars = 0
        self.operators = 0

    @property
    def token(self) -> Token:
        """The next token."""
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def sign(self, *texts: str) -> bool:
        """Whether the next token is one of these signs."""
        token = self.token
        return token.kind == SIGN and token.text in texts

    def command(self, *names: str) -> bool:
        """Whether the next token is one of these commands."""
        token = self.token
        return token.kind == COMMAND and token.text in names

    def group(self) -> Sequence[Token]:
        """What the bracket that opens here holds; goes behind it."""
        end = matching(self.tokens, self.at)
        inside = self.tokens[self.at + 1 : end]
        self.at = end + 1
        return inside

    def inner(self, tokens: Sequence[Token]) -> Node:
        """The expression of a group."""
        parser = Parser(tokens, self.depth + 1)
        node = parser.sum()
        if parser.token is not _END:
            raise Unread(f"{parser.token.text!r} does not belong there")
        return node

    def count(self) -> None:
        """Count an operator. Raises TooLarge."""
        self.operators += 1
        if self.operators > MAX_OPERATORS:
            raise TooLarge(f"more than {MAX_OPERATORS} operators")

    def sum(self) -> Node:
        """Terms with + and - between them."""
        node: Node | None = None
        if self.sign("+", "-", "pm", "mp"):
            node = self._signed()
        else:
            node = self.product()
        while self.sign("+", "-", "pm", "mp"):
            operator = self.token.text
            self.at += 1
            self.count()
            right = self._signed() if self.sign("+", "-") else self.product()
            node = (operator, node, right)
        return node

    def _signed(self) -> Node:
        operator = self.token.text
        self.at += 1
        if self.sign("+", "-", "pm", "mp") and operator in ("pm", "mp"):
            raise Unread("two signs")
        doubled = 0
        while self.sign("+", "-"):
            doubled += self.token.text == "-"
            self.at += 1
        inside = self.product()
        if doubled % 2:
            inside = ("neg", inside)
        if operator == "+":
            return inside
        return ("neg", inside) if operator == "-" else (operator, number(0), inside)

    def product(self) -> Node:
        """Factors with *, / or nothing between them."""
        node = self.factor()
        while True:
            self.count()
            if self.sign("*", "/"):
                operator = self.token.text
                self.at += 1
                right = self._signed() if self.sign("+", "-") else self.factor()
                node = (operator, node, right)
            elif self.sign(":") and self.inside:
                self.at += 1
                node = ("/", node, self.factor())
            elif self.starts_factor():
                node = ("*", node, self._next_to(node))
            else:
                return node

    def _next_to(self, left: Node) -> Node:
        """A factor without a sign before it. Raises Unread where two numbers stand side by side."""
        if self.token.kind == NUMBER:
            if left[0] == "num" or (left[0] == "*" and left[-1][0] == "num") or left[0] == "%":
                raise Unread("two numbers side by side")
        return self.factor()

    def starts_factor(self) -> bool:
        """Whether the next token can begin a factor."""
        token = self.token
        if token.kind in (NUMBER, NAME, FUNCTION, OPEN):
            return not (token.kind == OPEN and token.text == "\\{")
        if token.kind == RUN:
            return is_product(token.text)
        if token.kind == WORD:
            return len(token.text) == 1 and token.text.isascii()
        if token.kind == COMMAND:
            return token.text not in ("over", "choose", "pmod", "mod", "bmod", "pod", "end", "rfloor", "rceil", "begin")
        if token.kind == SIGN and token.text == "|":
            return self.in_bars == 0
        return token.kind == SIGN and token.text in ("pi", "inf", "partial")

    def factor(self) -> Node:
        """A power with what is written behind it."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLarge(f"expressions {MAX_DEPTH} deep")
        node = self._factor()
        self.depth -= 1
        return node

    def _factor(self) -> Node:
        node = self._mixed()
        while True:
            if self.sign("!"):
                self.at += 1
                double = self.sign("!")
                self.at += double
                self.count()
                node = ("!!" if double else "!", node)
            elif self.sign("'"):
                self.at += 1
                node = self._primed(node)
            elif self.sign("%"):
                self.at += 1
                node = ("%", node)
            elif self.sign("deg"):
                self.at += 1
                node = ("deg", node)
            elif self.sign("^"):
                self.at += 1
                node = self._raised(node)
            else:
                return node

    def _primed(self, node: Node) -> Node:
        if node[0] == "var":
            return ("var", node[1] + "'")
        raise Unread("a prime behind what is no name")

    def _raised(self, base: Node) -> Node:
        """base ^ exponent; `^\\circ` is a degree sign, `^\\prime` a prime."""
        self.count()
        if self.token.kind == OPEN and self.token.text == "{":
            inside = self.group()
            marks = [t.text for t in inside]
            if marks in (["circ"], ["deg"]):
                return ("deg", base)
            if marks and all(mark == "'" for mark in marks):
                for _ in marks:
                    base = self._primed(base)
                return base
            if marks in (["*"], ["T"], ["c"], ["C"]) and marks != ["c"]:
                return ("fn", "mark " + marks[0], base)
            return ("^", base, self.inner(inside))
        if self.sign("circ", "deg"):
            self.at += 1
            return ("deg", base)
        if self.sign("'"):
            return base
        negative = self.sign("-", "+")
        minus = self.sign("-")
        self.at += negative
        exponent = self._argument(whole=True)
        if self.sign("^") or self.sign("!"):
            self.at += self.sign("^")
            if self.tokens[self.at - 1].text == "^":
                exponent = self._raised(exponent)
        return ("^", base, ("neg", exponent) if minus else exponent)

    def _mixed(self) -> Node:
        """`2\\frac14` and `2 1/4`: an integer and a proper fraction."""
        node = self.atom()
        if node[0] != "num" or node[2] >= 0 or node[1].denominator != 1:
            return node
        if self.command(*_FRACTIONS):
            mark = self.at
            fraction = self.atom()
            if fraction[0] == "/" and all(part[0] == "num" and part[1].denominator == 1 for part in fraction[1:]):
                above, below = fraction[1][1], fraction[2][1]
                if 0 < above < below:
                    return ("num", node[1] + above / below, -1)
            self.at = mark
            return node
        rest = self.tokens[self.at : self.at + 3]
        if len(rest) == 3 and rest[0].kind == rest[2].kind == NUMBER and rest[1].text == "/" and rest[0].spaced:
            above, below = rest[0].value, rest[2].value
            if above is None or below is None or not 0 < above < below or rest[0].decimals >= 0:
                raise Unread("a number before an improper fraction")
            self.at += 3
            return ("num", node[1] + above / below, -1)
        return node

    def atom(self) -> Node:
        """A number, a name, a bracket, a function."""
        token = self.token
        if token.kind == NUMBER:
            self.at += 1
            if self.sign("_"):
                raise Unread("a number with an index")
            return ("num", token.value, token.decimals)
        if token.kind == NAME or (token.kind == WORD and len(token.text) == 1 and token.text.isascii()):
            self.at += 1
            return self._named(token.text)
        if token.kind == RUN and is_product(token.text):
            self.at += 1
            return self._letters(token.text)
        if token.kind == FUNCTION:
            return self._function()
        if token.kind == OPEN:
            return self._bracket()
        if token.kind == COMMAND:
            return self._command()
        if token.kind == SIGN:
            return self._sign_atom()
        raise Unread(f"{token.text!r} does not begin a factor" if token is not _END else "it ends too early")

    def _letters(self, letters: str) -> Node:
        *first, last = letters
        nodes = [self._simple(letter) for letter in first] + [self._named(last)]
        node = nodes[0]
        for other in nodes[1:]:
            node = ("*", node, other)
        return node

    def _simple(self, name: str) -> Node:
        return ("const", name) if name in ("e", "i") else ("var", name)

    def _named(self, name: str) -> Node:
        """A variable with its index, or a function that is called."""
        if self.sign("_"):
            self.at += 1
            name += "_" + self._index()
            node: Node = ("var", name)
        else:
            node = self._simple(name)
        primes = 0
        while self.sign("'"):
            self.at += 1
            primes += 1
        if primes:
            node = ("var", name + "'" * primes)
        called = name.split("_")[0] in _CALLED
        if called and self.token.kind == OPEN and self.token.text == "(" and node[0] == "var":
            arguments = split(self.group(), ",")
            return ("call", node[1], *(self.inner(argument) for argument in arguments))
        return node

    def _index(self) -> str:
        """An index as a text without blanks and braces."""
        if self.token.kind == OPEN:
            return "".join(t.text for t in self.group() if t.text not in "{}")
        token = self.token
        if token is _END or token.kind not in (NUMBER, NAME, RUN, WORD):
            raise Unread("an index that is none")
        self.at += 1
        return token.text

    def _bracket(self) -> Node:
        token = self.token
        if token.text not in ("(", "[", "{"):
            raise Unread("a set or a vector inside an expression")
        if token.text == "{" and matching(self.tokens, self.at) == self.at + 1:
            self.group()
            return self._prescript()
        end = matching(self.tokens, self.at)
        if PAIRS[token.text] != self.tokens[end].text:
            raise Unread("an interval inside an expression")
        inside = self.group()
        for at, inner in enumerate(inside):
            if inner.kind == COMMAND and inner.text in ("over", "choose") and _at_top(inside, at):
                above, below = self.inner(inside[:at]), self.inner(inside[at + 1 :])
                return ("/", above, below) if inner.text == "over" else ("fn", "binom", above, below)
        return self.inner(inside)

    def _prescript(self) -> Node:
        """`{}_5C_2`."""
        if not self.sign("_", "^"):
            raise Unread("empty braces")
        self.at += 1
        upper = self._argument(whole=True)
        kind = self.token
        if kind.kind != NAME or kind.text not in ("C", "P"):
            raise Unread("an index before what is no binomial")
        self.at += 1
        if not self.sign("_"):
            raise Unread("a binomial without its lower number")
        self.at += 1
        return ("fn", "binom" if kind.text == "C" else "perm", upper, self._argument(whole=True))

    def _sign_atom(self) -> Node:
        text = self.token.text
        if text in ("pi", "inf"):
            self.at += 1
            if text == "pi" and self.sign("_"):
                raise Unread("an index of pi")
            return ("const", text)
        if text == "|":
            return self._bars()
        if text == "_" or text == "^":
            return self._prescript()
        raise Unread(f"{text!r} does not begin a factor")

    def _bars(self) -> Node:
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

    def _argument(self, *, whole: bool = False) -> Node:
        """What a command takes: a group, a command, or one sign; of a number its first digit unless `whole`."""
        token = self.token
        if token.kind == OPEN and token.text in ("{", "("):
            if token.text == "{" and matching(self.tokens, self.at) == self.at + 1:
                raise Unread("empty braces")
            return self._bracket()
        if token.kind == NUMBER:
            digits = token.text
            if whole or len(digits) == 1 or not digits.isdigit():
                self.at += 1
                return ("num", token.value, token.decimals)
            self.tokens[self.at] = Token(NUMBER, digits[1:], False, Fraction(int(digits[1:])), -1)
            return number(int(digits[0]))
        if token.kind == NAME:
            self.at += 1
            return self._simple(token.text)
        if token.kind == RUN and not whole:
            self.tokens[self.at] = Token(NAME if len(token.text) == 2 else RUN, token.text[1:])
            return self._simple(token.text[0])
        return self.atom()

    def _command(self) -> Node:
        name = self.token.text
        self.at += 1
        self.count()
        if name in _FRACTIONS:
            return ("/", self._argument(), self._argument())
        if name == "sqrt":
            return self._root()
        if name in ("binom", "dbinom", "tbinom"):
            return ("fn", "binom", self._argument(), self._argument())
        if name in ("lfloor", "lceil"):
            return self._until("rfloor" if name == "lfloor" else "rceil", "floor" if name == "lfloor" else "ceil")
        if name in _ACCENTS and self.token.kind == OPEN:
            return ("var", name + " " + "".join(t.text for t in self.group()))
        if name in _ALPHABETS and self.token.kind == OPEN:
            return self._named(name + " " + "".join(t.text for t in self.group()))
        if name in ("sum", "prod"):
            return self._repeated(name)
        raise Unread(rf"\{name} does not belong there")

    def _root(self) -> Node:
        degree = number(2)
        if self.token.kind == OPEN and self.token.text == "[":
            degree = self.inner(self.group())
        return ("fn", "root", self._argument(), degree)

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

    def _function(self) -> Node:
        """A function with index, power and argument."""
        name = self.token.text
        self.at += 1
        self.count()
        if name == "sqrt":
            return self._root()
        if name == "cbrt":
            return ("fn", "root", self._argument(), number(3))
        if name == "binom":
            parts = split(self.group(), ",") if self.token.text == "(" else []
            if len(parts) == 2:
                return ("fn", "binom", self.inner(parts[0]), self.inner(parts[1]))
            return ("fn", "binom", self._argument(), self._argument())
        base = power = None
        while self.sign("_", "^"):
            sign = self.token.text
            self.at += 1
            minus = self.sign("-")
            self.at += minus
            found = self._argument(whole=True)
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
            node = ("*", node, self._next_to(node))
        return [node]

    def _raised_argument(self) -> Node:
        """A bracketed argument; a degree sign behind it is part of it, a power is not."""
        node = self._bracket()
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
                upper = self._argument(whole=True)
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


def _at_top(tokens: Sequence[Token], position: int) -> bool:
    depth = 0
    for token in tokens[:position]:
        depth += (token.kind == OPEN) - (token.kind == CLOSE)
    return depth == 0


def split(tokens: Sequence[Token], *signs: str) -> list[Sequence[Token]]:
    """The parts between signs that stand outside all brackets."""
    parts: list[Sequence[Token]] = []
    start = depth = 0
    for at, token in enumerate(tokens):
        if token.kind == OPEN:
            depth += 1
        elif token.kind == CLOSE:
            depth -= 1
        elif depth == 0 and token.kind == SIGN and token.text in signs:
            parts.append(tokens[start:at])
            start = at + 1
    parts.append(tokens[start:])
    return parts
