r"""Text -> tokens: one alphabet for LaTeX, plain text and Unicode.

Decorations (`\left`, `\displaystyle`, `\mathbf{..}`, `\color{..}`, dollar signs, `**`) leave no token; a command that is
not known makes the text unread.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from gmpo.rewards.reading.limits import MAX_CHARS, MAX_TOKENS, TooLarge, Unread

NUMBER, NAME, WORD, RUN, FUNCTION, COMMAND, SIGN, OPEN, CLOSE = (
    *("number", "name", "word", "run", "function", "command", "sign", "open", "close"),
)
"""Kinds of tokens. A WORD is from `\\text{..}` or of another script; a RUN is two or more letters that stand together in
a formula: a product, a unit, or a word."""


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


GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa"),
    *("lambda", "mu", "nu", "xi", "rho", "varrho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega"),
    *(
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Upsilon",
        "Phi",
        "Psi",
        "Omega",
        "ell",
        "hbar",
        "aleph",
    ),
)
FUNCTIONS = frozenset(
    (
        *("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc"),
        *("sinh", "cosh", "tanh", "coth", "sech", "csch", "arcsinh", "arccosh", "arctanh", "asin", "acos", "atan"),
        *("exp", "ln", "log", "lg", "sqrt", "gcd", "lcm", "max", "min", "Re", "Im", "arg", "det", "cis", "abs"),
        *("floor", "ceil", "sgn", "deg", "dim", "ker", "tr", "binom", "cbrt"),
    )
)
SETS = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complexes"}

_DROPPED = frozenset(
    (
        *("left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "Biggl"),
        *("Biggr", "bigm", "middle", "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "mathstrut"),
        *("rm", "bf", "it", "sf", "tt", "cal", "large", "Large", "LARGE", "huge", "Huge", "normalsize", "small"),
        *("boldmath", "strut", "square", "Box", "blacksquare", "qed", "hfill", "centering", "nonumber", "bfseries"),
    )
)
_WRAPPERS = frozenset(
    (
        *(
            "mathbf",
            "bm",
            "boldsymbol",
            "mathit",
            "mathsf",
            "mathtt",
            "mathnormal",
            "underline",
            "boxed",
            "fbox",
            "pmb",
        ),
        *("ensuremath", "mathop", "mathrel", "mathord", "mathclose", "mathopen", "uline", "smash", "mathbin", "bold"),
        *("displaylines", "framebox", "mathpunct", "mathinner", "underbracket", "textnormal", "mathbold", "phantom*"),
    )
)
_TEXTS = frozenset(
    (
        *("text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "textup", "textsc", "mbox", "hbox"),
        *("emph", "textsl", "intertext", "textmd"),
    )
)
_ROMAN = frozenset(("mathrm", "operatorname", "operatorname*", "rm"))
_BLANKS = frozenset((*("quad", "qquad", "enspace", "thinspace", "space", "nobreakspace", "hfil", "newline"),))
_SIGNS: dict[str, str] = {
    "times": "*",
    "cdot": "*",
    "ast": "*",
    "div": "/",
    "pm": "pm",
    "mp": "mp",
    "cup": "cup",
    "cap": "cap",
    "bigcup": "cup",
    "bigcap": "cap",
    "setminus": "minus",
    "backslash": "minus",
    "smallsetminus": "minus",
    "le": "<=",
    "leq": "<=",
    "leqslant": "<=",
    "leqq": "<=",
    "ge": ">=",
    "geq": ">=",
    "geqslant": ">=",
    "geqq": ">=",
    "lt": "<",
    "gt": ">",
    "ne": "!=",
    "neq": "!=",
    "approx": "~",
    "equiv": "equiv",
    "in": "in",
    "colon": ":",
    "mid": "|",
    "vert": "|",
    "lvert": "|",
    "rvert": "|",
    "sim": "similar",
    "simeq": "~",
    "cong": "cong",
    "perp": "perp",
    "parallel": "parallel",
    "to": "to",
    "rightarrow": "to",
    "Rightarrow": "implies",
    "infty": "inf",
    "pi": "pi",
    "emptyset": "empty",
    "varnothing": "empty",
    "prime": "'",
    "degree": "deg",
    "ldots": "dots",
    "dots": "dots",
    "cdots": "dots",
    "dotsc": "dots",
    "dotsb": "dots",
    "land": "and",
    "wedge": "and",
    "lor": "or",
    "vee": "or",
    "lVert": "norm",
    "rVert": "norm",
    "Vert": "norm",
    "subset": "subset",
    "subseteq": "subset",
    "notin": "notin",
    "propto": "propto",
    "implies": "implies",
    "iff": "iff",
    "euro": "€",
    "pounds": "£",
    "texteuro": "€",
    "textdollar": "dollar",
    "textdegree": "deg",
    "percent": "%",
    "doteq": "=",
    "triangleq": "=",
    "coloneqq": "=",
    "slash": "/",
    "ang": "angle",
    "angle": "angle",
    "triangle": "triangle",
    "textpm": "pm",
    "textendash": "-",
    "textminus": "-",
    "And": "and",
    "Or": "or",
    "wp": "wp",
    "varpi": "varpi",
    "dagger": "dagger",
    "nabla": "nabla",
    "partial": "partial",
    "odot": "odot",
}
_COMMANDS = frozenset(
    (
        *("frac", "dfrac", "tfrac", "cfrac", "sqrt", "binom", "dbinom", "tbinom", "over", "choose", "overline", "bar"),
        *(
            "begin",
            "end",
            "pmod",
            "mod",
            "bmod",
            "pod",
            "hat",
            "vec",
            "tilde",
            "overrightarrow",
            "widehat",
            "dot",
            "ddot",
        ),
        *("sum", "prod", "int", "lim", "mathbb", "Bbb", "mathcal", "mathscr", "mathfrak", "lfloor", "rfloor", "lceil"),
        *("rceil", "langle", "rangle", "sfrac", "nicefrac", "flatfrac", "dot", "widetilde", "iint", "oint"),
    )
)

_FROM_UNICODE = {
    "√": r"\sqrt ",
    "∛": r"\sqrt[3] ",
    "∜": r"\sqrt[4] ",
    "×": r"\times ",
    "⋅": r"\cdot ",
    "·": r"\cdot ",
    "∙": r"\cdot ",
    "•": r"\cdot ",
    "÷": r"\div ",
    "∗": "*",
    "∕": "/",
    "⁄": "/",
    "−": "-",
    "–": "-",
    "—": "-",
    "‐": "-",
    "‑": "-",
    "‒": "-",
    "﹣": "-",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "⩽": r"\le ",
    "⩾": r"\ge ",
    "≈": r"\approx ",
    "≡": r"\equiv ",
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "∈": r"\in ",
    "∉": r"\notin ",
    "∅": r"\emptyset ",
    "°": r"\degree ",
    "º": r"\degree ",
    "˚": r"\degree ",
    "′": "'",
    "’": "'",
    "‘": "'",
    "″": "''",
    "“": '"',
    "”": '"',
    "、": r"\listsep ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "〈": r"\langle ",
    "〉": r"\rangle ",
    "…": r"\ldots ",
    "∣": "|",
    "‖": r"\Vert ",
    "∧": r"\land ",
    "∨": r"\lor ",
    "→": r"\to ",
    "⇒": r"\Rightarrow ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "∫": r"\int ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
    "。": ".",
    "．": ".",
    "【": "[",
    "】": "]",
    "〔": "(",
    "〕": ")",
    "℃": r"\degree C",
    "℉": r"\degree F",
    "µ": r"\mu ",
    "ℓ": r"\ell ",
    "⊂": r"\subset ",
    "⊆": r"\subseteq ",
    "％": "%",
    "﹪": "%",
    "∥": r"\parallel ",
    "⟂": r"\perp ",
    "⊥": r"\perp ",
    "〜": r"\sim ",
    "～": r"\sim ",
    "∼": r"\sim ",
    "≅": r"\cong ",
    "⟶": r"\to ",
    "␣": " ",
    "⊕": r"\oplus ",
    "ⅇ": "e",
    "ⅈ": "i",
    "∂": r"\partial ",
    "≪": r"\ll ",
    "≫": r"\gg ",
    "∶": ":",
}
_FROM_UNICODE |= {
    chr(0x3B1 + i): rf"\{name} "
    for i, name in enumerate(
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "varepsilon",
            "zeta",
            "eta",
            "theta",
            "iota",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "omicron",
            "pi",
            "rho",
            "sigma",
            "sigma",
            "tau",
            "upsilon",
            "varphi",
            "chi",
            "psi",
            "omega",
        ]
    )
}
_FROM_UNICODE |= {
    "Γ": r"\Gamma ",
    "Δ": r"\Delta ",
    "Θ": r"\Theta ",
    "Λ": r"\Lambda ",
    "Ξ": r"\Xi ",
    "Π": r"\Pi ",
    "Σ": r"\Sigma ",
    "Φ": r"\Phi ",
    "Ψ": r"\Psi ",
    "Ω": r"\Omega ",
    "ϕ": r"\phi ",
    "ϵ": r"\epsilon ",
    "ϑ": r"\vartheta ",
}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣⁱ", "0123456789+-()nxi", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙₖᵢₓ", "0123456789+-nkix", strict=True))
_UNSEEN = re.compile("[\u200b\u200c\u200d\u2060\ufeff\u00ad]")


def plain(text: str) -> str:
    """Unicode's mathematical signs as LaTeX, digits of every script as ASCII. ASCII stays as it is."""
    if text.isascii():
        return text
    text = _UNSEEN.sub(" ", text)
    out: list[str] = []
    raised = lowered = False
    for char in text:
        if raised and char not in _SUPERSCRIPTS:
            out.append("}")
            raised = False
        if lowered and char not in _SUBSCRIPTS:
            out.append("}")
            lowered = False
        if char in _SUPERSCRIPTS:
            out.append(("" if raised else "^{") + _SUPERSCRIPTS[char])
            raised = True
        elif char in _SUBSCRIPTS:
            out.append(("" if lowered else "_{") + _SUBSCRIPTS[char])
            lowered = True
        elif char in _FROM_UNICODE:
            out.append(_FROM_UNICODE[char])
        elif unicodedata.decomposition(char).startswith("<fraction>"):
            above, _, below = unicodedata.normalize("NFKC", char).partition("⁄")
            out.append(rf"\frac{{{above}}}{{{below or '1'}}}")
        elif char.isdecimal():
            out.append(str(unicodedata.decimal(char)))
        else:
            simple = unicodedata.normalize("NFKC", char)
            out.append(_FROM_UNICODE.get(simple, simple))
    return "".join(out) + ("}" if raised or lowered else "")


_THIN = r"(?:\\[,!;: ~]\s*|~)"
_GROUPED = rf"[1-9][0-9]{{0,2}}(?:(?:\{{,\}}|,\s*\\!\s*|,?{_THIN}|PLAIN)[0-9]{{3}})+(?![0-9]|,[0-9])"
_TAIL = r"(?:\.[0-9]+)?"


def _number(separators: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?:(?P<grouped>{_GROUPED.replace('PLAIN', separators)})(?P<groupedtail>{_TAIL})"
        r"|(?P<whole>[0-9]+(?:\.(?![.\s]|$)[0-9]*)?|\.[0-9]+))"
        r"(?P<power>[eE][+-]?[0-9]+(?![0-9A-Za-z.]))?"
    )


_NUMBER_OUTSIDE = _number("[, ]")
_NUMBER_INSIDE = _number(" ")
"""Inside brackets a comma separates: `(1,234)` is a pair."""
_SEPARATOR = re.compile(r"[^0-9.]+")
_REPEATING = re.compile(r"\s*\\(?:overline|bar|dot)\s*\{?\s*([0-9]+)\s*\}?(?:\s*\\dot\s*\{?([0-9])\}?)?")
_DOTS = re.compile(r"\s*(?:\\[lc]?dots(?![a-zA-Z])|\.\.\.+)")
_LETTERS = re.compile(r"[A-Za-z]+")
_COMMAND = re.compile(r"\\(?:([A-Za-z]+\*?)|(.)|$)", re.DOTALL)
_BLANK = re.compile(r"\s+")
_TIMES = re.compile(r"\s*[xX]\s*(?=10\s*(?:\^|\*\*))")
_PLAIN_TEXT = re.compile(r"[A-Za-z]+(?:['’.-][A-Za-z]+)*")
_GROUP = re.compile(r"\s*\{([^{}]*)\}")
_SIZE = re.compile(r"\s*\*?\s*\{[^{}]*\}")
_CURRENCY = {"$": "dollar", "€": "€", "£": "£", "¥": "¥", "₹": "₹"}
_CHINESE_RELATIONS = {"等于": "=", "大于": ">", "小于": "<", "不等于": "!=", "大于等于": ">=", "小于等于": "<="}
_RELATIONS = (("<=", "<="), (">=", ">="), ("!=", "!="), ("=<", "<="), ("=>", ">="), ("==", "="), (":=", "="))


def tokenize(text: str) -> list[Token]:
    """The tokens of an answer. Raises Unread, TooLarge."""
    if len(text) > MAX_CHARS:
        raise TooLarge(f"longer than {MAX_CHARS} characters")
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
        if "A" <= char <= "Z" or "a" <= char <= "z":
            return self._letters(at)
        return self._sign(at)

    def _number(self, at: int) -> int:
        match = (_NUMBER_INSIDE if self.depth else _NUMBER_OUTSIDE).match(self.text, at)
        if match is None:
            raise Unread(f"{self.text[at : at + 10]!r} is no number")
        grouped = match["grouped"]
        digits = _SEPARATOR.sub("", grouped) + match["groupedtail"] if grouped else match["whole"]
        end = match.end()
        whole, point, after = digits.partition(".")
        if not match["power"]:
            repeating = _REPEATING.match(self.text, end) if point or self.text[end : end + 1] == "." else None
            if repeating is None and not point and self.text[end : end + 1] == ".":
                repeating = _REPEATING.match(self.text, end + 1)
            if repeating is not None:
                self.add(NUMBER, digits + "(" + repeating[1] + ")", _repeated(whole, after, repeating[1], repeating[2]))
                return repeating.end()
            dots = _DOTS.match(self.text, end) if after else None
            period = _period(after) if dots is not None else None
            if dots is not None and period is not None:
                self.add(NUMBER, digits + "...", _repeated(whole, after[: period[0]], period[1], None))
                return dots.end()
        if len(digits) > MAX_CHARS:
            raise TooLarge("a number of more than 2,000 digits")
        value = Fraction(int((whole or "0") + after), 10 ** len(after))
        decimals = len(after) if point and after else -1
        if match["power"]:
            exponent = int(match["power"][1:]) if len(match["power"]) < 12 else 10**9
            if abs(exponent) > 5_000:
                raise TooLarge(f"a power of ten of {exponent}")
            value *= Fraction(10) ** exponent
            decimals = max(0, len(after) - exponent) if after else -1
        self.add(NUMBER, digits + (match["power"] or ""), value, decimals)
        return end

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
        if word in _CHINESE_RELATIONS:
            self.add(SIGN, _CHINESE_RELATIONS[word])
        else:
            self.add(WORD, word)
        return end

    def _command(self, at: int) -> int:
        match = _COMMAND.match(self.text, at)
        assert match is not None
        name, sign, end = match[1], match[2], match.end()
        if name is None:
            return self._escaped(sign, end)
        if name in _TEXTS:
            return self._text_group(end)
        if name in _ROMAN:
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
        if name in _BLANKS:
            self.spaced = True
        elif name in _DROPPED:
            # `\left.` and `\right.` are brackets that are not there.
            if name in ("left", "right") and self.text[end : end + 1] == ".":
                return end + 1
        elif name in _WRAPPERS:
            return end
        elif name == "listsep":
            self.add(SIGN, ",")
        elif name in FUNCTIONS and name not in ("sqrt", "binom"):
            self.add(FUNCTION, name)
        elif name in _SIGNS:
            self.add(SIGN, _SIGNS[name])
        elif name in GREEK:
            self.add(NAME, name)
        elif name in _COMMANDS:
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


def _repeated(whole: str, before: str, period: str, last: str | None) -> Fraction:
    """0.12(34): the digits before the period, and the period."""
    period += last or ""
    head = int((whole or "0") + before)
    cycle = Fraction(int(period), 10 ** len(period) - 1)
    return (head + cycle) / Fraction(10) ** len(before)


def _period(after: str) -> tuple[int, str] | None:
    """Where the shortest period of `333` or `1666` begins, and it; None where the last digits do not repeat."""
    for length in range(1, len(after) // 2 + 1):
        cycle = after[-length:]
        start = len(after)
        while start >= length and after[start - length : start] == cycle:
            start -= length
        if (len(after) - start) // length >= (3 if length == 1 else 2):
            return start, cycle
    return None
