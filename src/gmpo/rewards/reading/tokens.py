r"""Text -> tokens: one alphabet for LaTeX, plain text and Unicode.

Decorations (`\left`, `\displaystyle`, `\mathbf{..}`, `\color{..}`, dollar signs, `**`) leave no token; a command that
is not known makes the text unread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from gmpo.rewards.reading.alphabet import (
    BLANKS,
    CHINESE_RELATIONS,
    COMMANDS,
    DROPPED,
    FUNCTIONS,
    GREEK,
    ROMAN,
    SIGNS,
    TEXTS,
    WRAPPERS,
    plain,
)
from gmpo.rewards.reading.limits import MAX_CHARS, MAX_TOKENS, TooLarge, Unread
from gmpo.rewards.reading.numerals import numeral

NUMBER, NAME, WORD, RUN = "number", "name", "word", "run"
FUNCTION, COMMAND, SIGN, OPEN, CLOSE = "function", "command", "sign", "open", "close"
"""Kinds of tokens. A WORD is from `\\text{..}` or of another script; a RUN is two or more letters that stand together
in a formula: a product, a unit, or a word."""


@dataclass(frozen=True, slots=True)
class Token:
    """One sign, number, name or word."""

    kind: str
    text: str
    spaced: bool = False
    """A blank stands before it."""
    value: Fraction | None = None
    """Of a number."""
    decimals: int = -1
    """Digits after the point of a decimal; -1 for integers and exact values."""


_LETTERS = re.compile(r"[A-Za-z]+")
_COMMAND = re.compile(r"\\(?:([A-Za-z]+\*?)|(.)|$)", re.DOTALL)
_BARE_PERIOD = re.compile(r"\.\s*(?:\\(?:overline|bar|dot)\b|\([0-9])")
_BLANK = re.compile(r"\s+")
_TIMES = re.compile(r"\s*[xX]\s*(?=10\s*(?:\^|\*\*))")
_PLAIN_TEXT = re.compile(r"[A-Za-z]+(?:['’.-][A-Za-z]+)*")
_GROUP = re.compile(r"\s*\{([^{}]*)\}")
_SIZE = re.compile(r"\s*\*?\s*\{[^{}]*\}")
_CURRENCY = {"$": "dollar", "€": "€", "£": "£", "¥": "¥", "₹": "₹"}
_RELATIONS = (("<=", "<="), (">=", ">="), ("!=", "!="), ("=<", "<="), ("=>", ">="), ("==", "="), (":=", "="))


def tokenize(text: str) -> list[Token]:
    """The tokens of an answer. Raises Unread, TooLarge."""
    if len(text) > MAX_CHARS:
        raise TooLarge(f"longer than {MAX_CHARS} characters")
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == "*":
        text = text.strip("*")
    scanner = _Scanner(plain(text))
    scanner.scan()
    return scanner.tokens


class _Scanner:
    """One pass over the text; `depth` counts brackets that hold lists."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[Token] = []
        self.spaced = False
        self.depth = 0
        self.aligned = False
        self.has_rows = "begin" in text
        self.dollars_are_math = text.count("$") - text.count("\\$") != 1

    def add(self, kind: str, text: str, value: Fraction | None = None, decimals: int = -1) -> None:
        if len(self.tokens) >= MAX_TOKENS:
            raise TooLarge(f"more than {MAX_TOKENS} signs")
        self.tokens.append(Token(kind, text, self.spaced, value, decimals))
        self.spaced = False

    def scan(self) -> None:
        at = 0
        text = self.text
        while at < len(text):
            at = self._next(at)

    def _next(self, at: int) -> int:
        text, char = self.text, self.text[at]
        if char.isspace() or char == "~":
            self.spaced = True
            return at + 1
        if char == "\\":
            return self._command(at)
        if char.isdigit() or (char == "." and text[at + 1 : at + 2].isdigit()):
            return self._number(at)
        if char == "." and _BARE_PERIOD.match(text, at) and not (self.tokens and self.tokens[-1].kind == NUMBER):
            self.text = text[:at] + "0" + text[at:]
            return at
        if "A" <= char <= "Z" or "a" <= char <= "z":
            return self._letters(at)
        return self._sign(at)

    def _number(self, at: int) -> int:
        found = numeral(self.text, at, in_brackets=self.depth > 0)
        self.add(NUMBER, found.text, found.value, found.decimals)
        return found.end

    def _letters(self, at: int) -> int:
        times = _TIMES.match(self.text, at)
        if times is not None and self.tokens and self.tokens[-1].kind == NUMBER:
            self.add(SIGN, "*")
            return times.end()
        match = _LETTERS.match(self.text, at)
        assert match is not None
        self._run(match.group())
        return match.end()

    def _run(self, letters: str) -> None:
        """Letters that stand together in a formula."""
        if letters in FUNCTIONS:
            self.add(FUNCTION, letters)
        elif letters in ("pi", "Pi") and letters == "pi":
            self.add(SIGN, "pi")
        elif letters in ("infinity", "inf", "oo", "infty"):
            self.add(SIGN, "inf")
        elif letters in GREEK and len(letters) > 2:
            self.add(NAME, letters)
        elif letters[-1] in "xyz" and letters[:-1] in ("sin", "cos", "tan", "cot", "sec", "csc", "ln", "log"):
            self.add(FUNCTION, letters[:-1])
            self.add(NAME, letters[-1])
        elif letters in ("U", "u") and self._between_intervals():
            self.add(SIGN, "cup")
        elif len(letters) == 1:
            self.add(NAME, letters)
        else:
            self.add(RUN, letters)

    def _between_intervals(self) -> bool:
        return bool(self.tokens) and self.tokens[-1].kind == CLOSE and self.tokens[-1].text in ")]" and self.spaced

    def _sign(self, at: int) -> int:
        text, char = self.text, self.text[at]
        for written, sign in _RELATIONS:
            if text.startswith(written, at):
                self.add(SIGN, sign)
                return at + 2
        if text.startswith("**", at):
            bold = not self.tokens or at + 2 >= len(text.rstrip()) or text.startswith("**", 0)
            if not bold:
                self.add(SIGN, "^")
            return at + 2
        if text.startswith("+/-", at) or text.startswith("+-", at):
            self.add(SIGN, "pm")
            return at + (3 if text[at + 1] == "/" else 2)
        if text.startswith("-/+", at):
            self.add(SIGN, "mp")
            return at + 3
        if text.startswith("...", at):
            self.add(SIGN, "dots")
            return at + 3
        if char in "([":
            self.depth += 1
            self.add(OPEN, char)
        elif char in ")]":
            self.depth = max(0, self.depth - 1)
            self.add(CLOSE, char)
        elif char == "{":
            self.add(OPEN, "{")
        elif char == "}":
            self.add(CLOSE, "}")
        elif char == "$":
            money = not self.dollars_are_math or (
                self.text.count("$") % 2 == 1 and self.text[at + 1 : at + 2].isdigit()
            )
            if money:
                self.add(SIGN, "dollar")
            else:
                self.spaced = True
        elif char == "&" and self.aligned:
            return at + 1
        elif char in "€£¥₹" or char in "+-*/^_=<>!%'|,;:&":
            self.add(SIGN, char)
        elif char == "`" or char == '"':
            return at + 1
        elif char == ".":
            self.add(SIGN, ".")
        elif char.isalpha():
            return self._foreign(at)
        else:
            raise Unread(f"the sign {char!r} is not known")
        return at + 1

    def _foreign(self, at: int) -> int:
        end = at
        while end < len(self.text) and self.text[end].isalpha() and not self.text[end].isascii():
            end += 1
        word = self.text[at:end]
        for mark in ("或者", "以及", "或", "和", "与", "及", "且"):
            if word == mark:
                self.add(SIGN, "or" if mark in ("或者", "或") else "and")
                return end
        if word in CHINESE_RELATIONS:
            self.add(SIGN, CHINESE_RELATIONS[word])
        else:
            self.add(WORD, word)
        return end

    def _command(self, at: int) -> int:
        match = _COMMAND.match(self.text, at)
        assert match is not None
        name, sign, end = match[1], match[2], match.end()
        if name is None:
            return self._escaped(sign, end)
        if name in TEXTS:
            return self._text_group(end)
        if name in ROMAN:
            return self._roman(end)
        if name in ("color", "colorbox", "textcolor", "class", "style", "cssId", "href"):
            group = _GROUP.match(self.text, end)
            if group is None:
                raise Unread(rf"\{name} without its braces")
            return group.end()
        if name.rstrip("*") in ("hspace", "vspace", "phantom", "hphantom", "vphantom", "kern", "label", "tag"):
            group = _SIZE.match(self.text, end)
            self.spaced = True
            return group.end() if group else end
        if name in ("begin", "end"):
            group = _GROUP.match(self.text, end)
            if group is not None and group[1].rstrip("*") in ("aligned", "align", "equation", "gathered", "split"):
                self.aligned = True
                return group.end()
        if name in BLANKS:
            self.spaced = True
        elif name in DROPPED:
            # `\left.` and `\right.` are brackets that are not there.
            if name in ("left", "right") and self.text[end : end + 1] == ".":
                return end + 1
        elif name in WRAPPERS:
            return end
        elif name == "listsep":
            self.add(SIGN, ",")
        elif name in FUNCTIONS and name not in ("sqrt", "binom"):
            self.add(FUNCTION, name)
        elif name in SIGNS:
            self.add(SIGN, SIGNS[name])
        elif name in GREEK:
            self.add(NAME, name)
        elif name in COMMANDS:
            self._known(name)
        elif name in ("lbrace", "rbrace"):
            self.add(OPEN if name == "lbrace" else CLOSE, "\\{" if name == "lbrace" else "\\}")
        elif name in ("lbrack", "rbrack"):
            self.add(OPEN if name == "lbrack" else CLOSE, "[" if name == "lbrack" else "]")
        elif name in ("circ",):
            # A degree sign where it is raised, else a composition.
            self.add(SIGN, "circ")
        elif name == "not":
            self.add(SIGN, "not")
        else:
            raise Unread(rf"\{name} is not known")
        return end

    def _known(self, name: str) -> None:
        if name == "langle":
            self.depth += 1
            self.add(OPEN, "<")
        elif name == "rangle":
            self.depth -= 1
            self.add(CLOSE, ">")
        else:
            self.add(COMMAND, name)

    def _escaped(self, sign: str | None, end: int) -> int:
        """`\\,` and its like."""
        if sign is None:
            return end
        if sign in ",;:! \n\t>/":
            self.spaced = self.spaced or sign != "!"
        elif sign == "{":
            self.depth += 1
            self.add(OPEN, "\\{")
        elif sign == "}":
            self.depth = max(0, self.depth - 1)
            self.add(CLOSE, "\\}")
        elif sign == "%":
            self.add(SIGN, "%")
        elif sign == "$":
            self.add(SIGN, "dollar")
        elif sign == "\\":
            if self.text[end : end + 1].isalpha() and not self.has_rows:
                return end - 1  # A backslash that was escaped once too often.
            self.add(SIGN, "\\\\")
        elif sign == "|":
            self.add(SIGN, "norm")
        elif sign in "()[]":
            self.spaced = True
        elif sign in "&#_-*":
            self.add(SIGN, sign)
        else:
            raise Unread(rf"\{sign} is not known")
        return end

    def _text_group(self, at: int) -> int:
        inside, end = self._braced(at)
        self._text(inside)
        return end

    def _braced(self, at: int) -> tuple[str, int]:
        """What the braces after a command hold; a single sign where there are none."""
        text = self.text
        while at < len(text) and text[at] in " \n\t":
            at += 1
        if text[at : at + 1] != "{":
            return text[at : at + 1], at + 1
        depth = 0
        for position in range(at, len(text)):
            depth += (text[position] == "{") - (text[position] == "}")
            if depth == 0:
                return text[at + 1 : position], position + 1
        raise Unread("a brace is not closed")

    def _text(self, inside: str) -> None:
        """Words, and what stands between them as in a formula."""
        at = 0
        outer, self.text = self.text, inside
        try:
            while at < len(inside):
                match = _PLAIN_TEXT.match(inside, at)
                if match is None:
                    at = self._next(at)
                    continue
                self.add(WORD, match.group())
                at = match.end()
        finally:
            self.text = outer
        if inside[-1:].isspace():
            self.spaced = True

    def _roman(self, at: int) -> int:
        """Upright letters: a function, a unit, or a constant."""
        inside, end = self._braced(at)
        bare = inside.strip(" ~")
        if bare in FUNCTIONS:
            self.add(FUNCTION, bare)
        elif bare in ("e", "i", "d", "x", "E", "D"):
            self.add(NAME, bare)
        else:
            self._text(inside)
        return end
