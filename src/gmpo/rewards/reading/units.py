"""Units of answers: what they measure and how large they are; and the nouns that people count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from gmpo.rewards.reading.limits import Unread
from gmpo.rewards.reading.tokens import CLOSE, FUNCTION, NAME, NUMBER, OPEN, RUN, SIGN, WORD, Token

Dimension = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit: `km/h`, or counted nouns."""

    dimension: Dimension = ()
    factor: Fraction = Fraction(1)
    """Size in the basic unit of its dimension."""
    nouns: frozenset[str] = frozenset()
    """Words that are no known unit, without the s of the plural."""


def _table() -> dict[str, tuple[str, Fraction]]:
    rows: dict[str, tuple[str, Fraction]] = {}

    def add(dimension: str, factor: str, names: str) -> None:
        for name in names.split():
            rows[name] = (dimension, Fraction(factor))

    add("length", "1", "m meter meters metre metres 米")
    add("length", "1/100", "cm centimeter centimeters centimetre centimetres 厘米")
    add("length", "1/1000", "mm millimeter millimeters millimetre millimetres 毫米")
    add("length", "1000", "km kilometer kilometers kilometre kilometres 千米 公里")
    add("length", "127/5000", "inch inches in")
    add("length", "381/1250", "ft foot feet")
    add("length", "1143/1250", "yd yard yards")
    add("length", "201168/125", "mile miles mi")
    add("time", "1", "s sec secs second seconds 秒")
    add("time", "60", "min mins minute minutes 分钟")
    add("time", "3600", "h hr hrs hour hours 小时")
    add("time", "86400", "day days 天")
    add("time", "604800", "week weeks")
    add("time", "1/1000", "ms millisecond milliseconds")
    add("year", "1", "year years yr yrs 年")
    add("year", "1/12", "month months")
    add("mass", "1", "kg kilogram kilograms 千克 公斤")
    add("mass", "1/1000", "g gram grams gm 克")
    add("mass", "1/1000000", "mg milligram milligrams")
    add("mass", "45359237/100000000", "lb lbs pound pounds")
    add("mass", "45359237/1600000000", "oz ounce ounces")
    add("mass", "1000", "ton tons tonne tonnes 吨")
    add("volume", "1", "L l liter liters litre litres 升")
    add("volume", "1/1000", "mL ml milliliter milliliters millilitre millilitres 毫升")
    add("volume", "3785411784/1000000000", "gallon gallons gal")
    add("dollar", "1", "dollar dollars usd USD bucks")
    add("dollar", "1/100", "cent cents ¢")
    add("euro", "1", "euro euros eur EUR €")
    add("pound sterling", "1", "£ gbp GBP")
    add("yuan", "1", "yuan ¥ rmb RMB 元")
    add("rupee", "1", "rupee rupees ₹")
    add("angle", "1", "degree degrees deg °")
    add("angle", "1/60", "arcminute arcminutes")
    add("radian", "1", "radian radians rad")
    add("temperature C", "1", "celsius °C")
    add("temperature F", "1", "fahrenheit °F")
    add("force", "1", "N newton newtons")
    add("energy", "1", "J joule joules")
    add("energy", "1000", "kJ kilojoule kilojoules")
    add("power", "1", "W watt watts")
    add("power", "1000", "kW kilowatt kilowatts")
    add("pressure", "1", "Pa pascal pascals")
    add("frequency", "1", "Hz hertz")
    add("frequency", "1000", "kHz")
    add("voltage", "1", "V volt volts")
    add("current", "1", "A ampere amperes amp amps")
    add("resistance", "1", "ohm ohms Omega")
    add("amount", "1", "mol mole moles")
    add("absolute temperature", "1", "K kelvin kelvins")
    return rows


UNITS = _table()
_SPEEDS = {"mph": (("length", "201168/125"), ("time", "3600")), "kph": (("length", "1000"), ("time", "3600"))}
_SPEEDS["kmh"] = _SPEEDS["kph"]
MULTIPLES = {
    "hundred": 100,
    "thousand": 1_000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "万": 10**4,
    "亿": 10**8,
    "百": 100,
    "千": 1_000,
}
PERCENT = frozenset(("percent", "pct", "percentage"))
_SILENT = frozenset(("unit", "units", "of", "the", "a", "an", "in", "per", "square", "sq", "cubic", "cu", "total"))
_HEDGES = frozenset(
    (
        *("is", "are", "was", "were", "be", "not", "no", "never", "if", "else", "otherwise", "when", "where", "unless"),
        *(
            "wrong",
            "incorrect",
            "maybe",
            "perhaps",
            "or",
            "and",
            "but",
            "nor",
            "except",
            "than",
            "least",
            "most",
            "more",
        ),
        *("less", "i", "cannot", "can", "could", "might", "may", "must", "should", "would", "only", "for", "with"),
        *("without", "then", "so", "because", "since", "mod", "modulo", "base", "plus", "minus", "times", "divided"),
        *("over", "remainder", "to", "from", "between", "either", "neither", "all", "every", "some", "none"),
        *("half", "quarter", "third", "twice", "double", "negative", "positive", "greater", "smaller", "fewer", "does"),
        *("false", "true", "undefined", "infinity", "approximately", "about", "sqrt", "squared", "cubed", "factorial"),
        *("correct", "right", "answer", "guess", "think", "instead", "actually", "wait", "versus", "vs", "extra"),
        *("root", "roots", "solutions", "solution", "does", "do", "did", "excluding", "including", "inclusive"),
        *("r", "remaining?", "real", "complex", "imaginary", "ways?", "hundredths", "tenths", "fifths", "thirds"),
    )
)
"""Words that change what an answer says, so that it is not a number of things."""
MAX_WORDS = 5
_HALF_DOZEN = 6


def singular(word: str) -> str:
    """`apples` -> `apple`."""
    word = word.casefold().rstrip(".'")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def begins_unit(token: Token) -> bool:
    """Whether a unit may begin with this token."""
    if token.kind == SIGN:
        return token.text in ("deg", "dollar", "%", "€", "£", "¥", "₹", "'")
    if token.kind == FUNCTION:
        return token.text in ("min", "sec", "deg")
    if token.kind in (WORD, RUN):
        return len(token.text) > 1 or not token.text.isascii() or _known(token.text) is not None
    return token.kind == NAME and (token.spaced or token.text == "Omega") and _known(token.text) is not None


def _known(word: str) -> tuple[str, Fraction] | None:
    bare = word.rstrip(".")
    return UNITS.get(bare) or UNITS.get(bare.casefold() if len(bare) > 2 else bare)


class UnitReader:
    """Reads one unit from the front of tokens."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self._dimension: dict[str, int] = {}
        self._factor = Fraction(1)
        self._nouns: set[str] = set()

    def read(self) -> Unit:
        """The unit up to the next number. Raises Unread for words that say something else."""
        sign, power, words = 1, 1, 0
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            if token.kind == NUMBER:
                break
            word = token.text.casefold() if token.kind in (WORD, RUN) else token.text
            if token.kind == SIGN and token.text in ("/", "*", "."):
                sign = -1 if token.text == "/" else sign
                self.at += 1
                continue
            if word in ("per", "an", "each") and words:
                sign = -1
                self.at += 1
                continue
            if word in ("square", "sq", "cubic", "cu", "sq.", "cu."):
                power = 2 if word.startswith("sq") else 3
                self.at += 1
                words += 1
                continue
            self._take(token, word, sign, power)
            power = 1
            words += 1
            if words > MAX_WORDS:
                raise Unread("too many words behind a number")
        return Unit(
            tuple(sorted((name, power) for name, power in self._dimension.items() if power)),
            self._factor,
            frozenset(self._nouns),
        )

    def _take(self, token: Token, word: str, sign: int, power: int) -> None:
        self.at += 1
        if token.kind == SIGN:
            known = UNITS.get({"deg": "°", "dollar": "dollar", "'": "arcminute"}.get(token.text, token.text))
            if token.text == "deg" and self.at < len(self.tokens) and self.tokens[self.at].text in ("C", "F"):
                known = UNITS["°" + self.tokens[self.at].text]
                self.at += 1
        elif token.kind in (WORD, RUN, NAME, FUNCTION):
            known = _known(token.text)
        elif (token.kind == OPEN and token.text in ("{", "(")) or (token.kind == CLOSE and token.text in ("}", ")")):
            return
        else:
            raise Unread(f"{token.text!r} is no unit")
        raised = self._exponent() * power * sign
        if word in _SPEEDS:
            for place, (name, factor) in enumerate(_SPEEDS[word]):
                self._multiply(name, Fraction(factor), 1 if place == 0 else -1)
        elif known is not None:
            self._multiply(known[0], known[1], raised)
        elif word in _HEDGES or token.kind not in (WORD, RUN):
            raise Unread(f"{token.text!r} behind a number is no unit")
        elif word not in _SILENT:
            self._nouns.add(singular(token.text))

    def _multiply(self, name: str, factor: Fraction, power: int) -> None:
        self._dimension[name] = self._dimension.get(name, 0) + power
        if abs(self._dimension[name]) > 9:
            raise Unread("a unit to a high power")
        self._factor *= factor**power

    def _exponent(self) -> int:
        """`^2`, `^{-1}` behind a unit."""
        rest = self.tokens[self.at : self.at + 5]
        texts = [t.text for t in rest]
        if texts[:1] != ["^"]:
            return 1
        for form in (["^", "N"], ["^", "-", "N"], ["^", "{", "N", "}"], ["^", "{", "-", "N", "}"]):
            shaped = ["N" if t.kind == NUMBER else t.text for t in rest[: len(form)]]
            if shaped == form:
                digits = next(t.text for t in rest if t.kind == NUMBER)
                if digits not in "123456789":
                    break
                self.at += len(form)
                return -int(digits) if "-" in form else int(digits)
        raise Unread("an exponent of a unit")
