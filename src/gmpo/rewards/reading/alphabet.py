"""The names of LaTeX's commands and what they mean here, and Unicode's signs as LaTeX."""

from __future__ import annotations

import re
import unicodedata

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
DROPPED = frozenset(
    (
        *("left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "Biggl"),
        *("Biggr", "bigm", "middle", "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "mathstrut"),
        *("rm", "bf", "it", "sf", "tt", "cal", "large", "Large", "LARGE", "huge", "Huge", "normalsize", "small"),
        *(
            "boldmath",
            "strut",
            "square",
            "Box",
            "blacksquare",
            "qed",
            "checkmark",
            "hfill",
            "centering",
            "nonumber",
            "bfseries",
        ),
    )
)
WRAPPERS = frozenset(
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
TEXTS = frozenset(
    (
        *("text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "textup", "textsc", "mbox", "hbox"),
        *("emph", "textsl", "intertext", "textmd"),
    )
)
ROMAN = frozenset(("mathrm", "operatorname", "operatorname*", "rm"))
BLANKS = frozenset((*("quad", "qquad", "enspace", "thinspace", "space", "nobreakspace", "hfil", "newline"),))
SIGNS: dict[str, str] = {
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
    "therefore": "implies",
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
COMMANDS = frozenset(
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
CHINESE_RELATIONS = {"等于": "=", "大于": ">", "小于": "<", "不等于": "!=", "大于等于": ">=", "小于等于": "<="}
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
