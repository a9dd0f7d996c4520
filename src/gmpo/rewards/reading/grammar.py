r"""Tokens -> one expression, by recursive descent.

Expressions are nested tuples, the operator first: `("+", a, b)`. The whole run of tokens must be one expression.
As written by people and by LaTeX: `2\frac14` and `2 1/4` are mixed numbers, `\sin 2x` takes the product, `\frac12` two
digits, `1/2x` is `(1/2)x`.
"""

from __future__ import annotations

from collections.abc import Sequence

from gmpo.rewards.reading.commands import FRACTIONS, Commands
from gmpo.rewards.reading.cursor import END, PAIRS, Node, at_top, is_product, matching, number
from gmpo.rewards.reading.limits import MAX_DEPTH, TooLarge, Unread
from gmpo.rewards.reading.tokens import COMMAND, FUNCTION, NAME, NUMBER, OPEN, RUN, SIGN, WORD, Token


def parse(tokens: Sequence[Token]) -> Node:
    """The expression that all the tokens make. Raises Unread, TooLarge."""
    for at, token in enumerate(tokens):
        if token.kind == COMMAND and token.text == "over" and at_top(tokens, at):
            return ("/", parse(tokens[:at]), parse(tokens[at + 1 :]))
    parser = Parser(tokens)
    node = parser.sum()
    if parser.token is not END:
        raise Unread(f"{parser.token.text!r} does not belong there")
    return node


class Parser(Commands):
    """Reads one expression from the left."""

    def sum(self) -> Node:
        """Terms with + and - between them."""
        node = self._signed() if self.sign("+", "-", "pm", "mp") else self.product()
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
                node = ("*", node, self.next_to(node))
            else:
                return node

    def next_to(self, left: Node) -> Node:
        """A factor without a sign before it. Raises Unread where two numbers stand side by side."""
        behind_number = left[0] in ("num", "%") or (left[0] == "*" and left[-1][0] == "num")
        if self.token.kind == NUMBER and behind_number:
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
        exponent = self.read_argument(whole=True)
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
        if self.command(*FRACTIONS):
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
            return self.read_named(token.text)
        if token.kind == RUN and is_product(token.text):
            self.at += 1
            return self.read_letters(token.text)
        if token.kind == FUNCTION:
            return self.read_function()
        if token.kind == OPEN:
            return self.bracket()
        if token.kind == COMMAND:
            return self.read_command()
        if token.kind == SIGN:
            return self._sign_atom()
        raise Unread(f"{token.text!r} does not begin a factor" if token is not END else "it ends too early")

    def bracket(self) -> Node:
        token = self.token
        if token.text not in ("(", "[", "{"):
            raise Unread("a set or a vector inside an expression")
        if token.text == "{" and matching(self.tokens, self.at) == self.at + 1:
            self.group()
            return self.read_prescript()
        end = matching(self.tokens, self.at)
        if PAIRS[token.text] != self.tokens[end].text:
            raise Unread("an interval inside an expression")
        inside = self.group()
        for at, inner in enumerate(inside):
            if inner.kind == COMMAND and inner.text in ("over", "choose") and at_top(inside, at):
                above, below = self.inner(inside[:at]), self.inner(inside[at + 1 :])
                return ("/", above, below) if inner.text == "over" else ("fn", "binom", above, below)
        return self.inner(inside)

    def _sign_atom(self) -> Node:
        text = self.token.text
        if text in ("pi", "inf"):
            self.at += 1
            if text == "pi" and self.sign("_"):
                raise Unread("an index of pi")
            return ("const", text)
        if text == "|":
            return self.read_bars()
        if text == "_" or text == "^":
            return self.read_prescript()
        raise Unread(f"{text!r} does not begin a factor")

    def inner(self, tokens: Sequence[Token]) -> Node:
        """The expression of a group."""
        parser = Parser(tokens, self.depth + 1)
        node = parser.sum()
        if parser.token is not END:
            raise Unread(f"{parser.token.text!r} does not belong there")
        return node
