r"""Where the answer is in a text: behind the thinking, in a box, behind a phrase, or the whole text.

The general scorer reads what a reader would take for the answer. It never salvages a number from a text that does not
say that it is the answer, that denies it, or that takes it back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from gmpo.rewards import answers

Thinking = Literal["strip", "require", "ignore"]
Require = Literal["boxed", "phrase", "any"]
THINKING: tuple[Thinking, ...] = ("strip", "require", "ignore")
REQUIRE: tuple[Require, ...] = ("boxed", "phrase", "any")
THINKING_TAGS = ("<think>", "</think>")

BARE_CHARS = 200
"""Longest text that counts as a bare answer as a whole; it must be one line."""
TEXT_CHARS = 3_000
"""Tags and phrases are looked for in this many characters at the end."""
_BOX_CHARS = 10_000
"""A box that is not closed after so many characters is taken for one that is never closed."""
_MAX_BOXES = 20
"""Boxes of one sentence that are put together."""


def without_thinking(text: str, mode: Thinking, tags: tuple[str, str] = THINKING_TAGS) -> str | None:
    """The text without its thinking; None where the thinking does not end, or is missing though required.

    A closing tag without an opening one ends thinking that the prompt began.

    Args:
        mode: `ignore` leaves the text alone, `strip` removes thinking, `require` wants thinking that has ended.
    """
    opening, closing = tags
    if mode == "ignore":
        return text
    if opening not in text and closing not in text:
        return None if mode == "require" else text
    kept: list[str] = []
    at, thinking, ended = 0, False, False
    for tag in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", text):
        if tag.group() == closing:
            if not thinking:
                kept.clear()
            thinking, ended, at = False, True, tag.end()
        elif not thinking:
            kept.append(text[at : tag.start()])
            thinking = True
    if thinking or (mode == "require" and not ended):
        return None
    kept.append(text[at:])
    return "".join(kept)


def candidates(text: str, require: Require) -> Iterator[str]:
    """What may be the answer of a text, the likeliest first: the first that can be read is the answer."""
    for candidate in _candidates(text, require):
        bare = candidate.strip()
        yield bare[1:-1].strip() if len(bare) > 2 and bare[0] == bare[-1] == "$" and bare.count("$") == 2 else bare


def _candidates(text: str, require: Require) -> Iterator[str]:
    boxed = boxed_answer(text)
    if boxed is not None:
        yield from boxed
        return
    if require == "boxed":
        return
    tail = text[-TEXT_CHARS:]
    tagged = answers.tagged_answer(tail)
    if tagged is not None:
        yield tagged
        return
    tail = _SPECIAL.sub("", tail)
    found = list(_named_answer(tail))
    if found or _PHRASE.search(tail):
        yield from found
        return
    if require == "any":
        bare = _SPECIAL.sub("", text).strip() if len(text) <= 2 * BARE_CHARS else ""
        if (
            bare
            and len(bare) <= BARE_CHARS
            and not _RETRACTED.search(bare)
            and ("\n" not in bare or _BLOCK.match(bare))
        ):
            yield bare
    yield from _concluded(tail, formulas=require == "any")


def boxed_answer(text: str) -> list[str] | None:
    r"""What the last box holds, empty ones left out; None without a box, [] where the last one is never closed.

    Boxes with nothing but a comma or `and` between them are one answer: `\boxed{3}, \boxed{5}` is `3, 5`.
    """
    found: list[tuple[int, str]] = []
    for box in _last_boxes(text):
        inside = answers.box_at(text, box.end(), _BOX_CHARS)
        if inside is None:
            # `\boxed` without its braces is mentioned, not used; one that is not closed is cut off.
            if text[box.end() :].lstrip(" ")[:1] == "{" and not found:
                return []
            continue
        content, end = inside
        if found and not _JOINT.fullmatch(text[end : found[-1][0]]):
            break
        if content.strip():
            found.append((box.start(), content))
    if not found:
        return None
    contents = [content for _, content in reversed(found)]
    return [contents[0] if len(set(contents)) == 1 else ", ".join(contents)]


def _last_boxes(text: str) -> Iterator[re.Match[str]]:
    """The boxes from the last one on, at most so many."""
    before = len(text)
    for _ in range(_MAX_BOXES):
        before = max(text.rfind("\\boxed", 0, before), text.rfind("\\fbox", 0, before))
        if before < 0:
            return
        box = _BOX.match(text, before)
        if box is not None:
            yield box


_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_JOINT = re.compile(
    r"(?=.{0,60}\Z)(?=.*(?:,|;|and|or|、|，|和|或))"
    r"(?:[\s,;$&、，和或.]|\\[()\[\],; ]|\\q?quad|\\text\{ *(?:and|or) *\}|and\b|or\b)*",
    re.DOTALL,
)
_BLOCK = re.compile(r"(?:\$+|\\\[)?\s*\\(?:left.\s*)?\\?begin\b|\\begin\b|\$\$|\\\[")
"""How a formula of several lines begins."""
_SPECIAL = re.compile(r"\s*I hope it is correct\.?\s*\Z|(?:<\|[a-z_]+\|>\s*(?:user|assistant)?\s*)+\Z|</s>\s*\Z")
_PHRASE = re.compile(
    r"\b(?:answers?|solution|result)\b(?:\s+to\s+(?:the|this)\s+\w+)?\s*(?:\*\*|__)?\s*"
    r"(?:(?:is|are|was|equals?|would\s+be|should\s+be|must\s+be)\b(?!\s*n['’]t)\s*:?|[:：=])\s*(?:\*\*|__)?\s*"
    r"|\bfinal\s+answers?\s*(?:\*\*|__)?\s*\n+|\banswer\s+(?=\$|\\\(|\\\[)|答案\s*(?:是|为|：|:)\s*|####\s*"
    r"|\b(?:réponse|respuesta|resposta|antwort|risposta)\b(?:\s+\w+)?\s*(?:est|es|é|ist|è|:)\s*:?\s*",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\s*(?:not\b|n['’]t\b|unknown|unclear|none of|cannot\b|can['’]?t\b|hard\b|impossible to|difficult|wrong|incorrect|"
    r"unlikely|never\b|neither\b|different from|less than|more than|greater than|at least|at most|between\b|"
    r"no longer|uncertain|undetermined|in the\b|given\b|\?|correct\b|right\b)",
    re.IGNORECASE,
)
_RETRACTED = re.compile(
    r"\b(?:maybe|perhaps|wait|actually|not sure|unsure|alternatively|on second thought|correction|i was wrong|"
    r"let me re|i mean|instead|probably|might be|could be|scratch that|i guess|i give up|cannot solve|"
    r"can['’]?t solve|do not know|don['’]?t know|is wrong|not correct|incorrect|however|but then|or rather)\b"
    r"|(?:^|[.!?]\s+)no\b[,.! ]",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"(?:so|thus|therefore|hence|consequently|in conclusion|as a result|in total|altogether)\b(?!\s+far)[^.?!\n]*?"
    r"(?:\b(?:is|are|equals|has|have|gives|get|costs?|makes?)\b:?|=)\s*"
    r"(?!.*(?:\b(?:is|are|equals|has|have|gives|get|costs?|makes?)\b|=))((?:\\?\$\s*)?[-\d.(\\][^?!\n]*?)\s*\.\s*\Z",
    re.IGNORECASE,
)
"""A finished sentence that draws a conclusion, and what it says at its end."""
_SUPPOSED = re.compile(
    r"\b(?:if|suppose|assume|assuming|whether|imagine|unless|claim|not say|doubt|false|not\s+true|"
    r"untrue|impossible|unlikely)\s+(?:that\s+)?"
    r"(?:(?:the|our|my|this|a|final|correct|right)\s+)*\Z",
    re.IGNORECASE,
)
"""Before a phrase that does not say what the answer is."""
_SENTENCE = re.compile(r"(?:(?<![0-9A-Z])\.|(?<=[0-9$)}\]A-Z])\.|[?!。])(?=\s|$|\*)")
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_VERB = re.compile(
    r"\b(?:is|are|equals?|be)\b(?!.*\b(?:is|are|equals?|be)\b)\s*:?\s*(?:equal to|exactly)?", re.IGNORECASE
)


def _named_answer(text: str) -> Iterator[str]:
    """What follows the last phrase that names the answer, up to the end of its sentence."""
    phrases = list(_PHRASE.finditer(text))
    while phrases:
        phrase = phrases.pop()
        rest = text[phrase.end() :]
        hashes = "####" in phrase.group()
        if not rest.strip("*_ \n$"):
            continue
        if _SUPPOSED.search(text[max(0, phrase.start() - 40) : phrase.start()]):
            return
        sentence, after = _first_sentence(rest)
        if not hashes and _RETRACTED.search(sentence):
            return
        if _DENIED.match(sentence) or _RETRACTED.search(after):
            return
        bare = sentence.strip().strip("*_").strip()
        yield bare
        verb = _VERB.search(bare)
        if verb is not None:
            if not _DENIED.match(bare[verb.end() :]):
                yield bare[verb.end() :]
            return
        formulas = _formulas(bare)
        if len(formulas) == 1:
            yield formulas[0]
        return


def _first_sentence(text: str) -> tuple[str, str]:
    """The first sentence of what follows a phrase, or the formula on its next lines, and the rest."""
    text = text.lstrip()
    displayed = _FORMULA.match(text)
    start = displayed.end() if displayed is not None else 0
    end = len(text)
    line = text.find("\n", start)
    if line >= 0:
        end = line
    stop = start
    while True:
        match = _SENTENCE.search(text, stop, end)
        if match is None:
            break
        inside_formula = text.count("$", 0, match.start()) % 2
        if not inside_formula and not _is_abbreviation(text, match.start()):
            end = match.start() if match.group() == "." else match.end()
            break
        stop = match.end()
        if stop >= end:
            break
    return text[:end], text[end:]


def _is_abbreviation(text: str, at: int) -> bool:
    return text[max(0, at - 3) : at].casefold() in ("a.m", "p.m", "i.e", "e.g") or text[max(0, at - 3) : at] in (
        " Mr",
        " Dr",
    )


def _formulas(text: str) -> list[str]:
    return [next(group for group in match.groups() if group is not None) for match in _FORMULA.finditer(text)]


def _concluded(text: str, *, formulas: bool) -> Iterator[str]:
    """A count in bold, or the one formula, in the last sentence of a text that does not take it back."""
    lines = text.rstrip().rsplit("\n\n", 1)[-1][-1_000:]
    last = _last_sentence(lines)
    if _RETRACTED.search(last) or (len(lines) < 1_000 and _RETRACTED.search(lines)):
        return
    bold = _BOLD.findall(last)
    if len(bold) == 1 and not re.search(r"\bnot?\b|\?\s*$", last):
        yield bold[0]
        return
    if formulas and (said := _CONCLUSION.match(last)) is not None and not _DENIED.match(said[1]):
        yield said[1]
        return
    found = _formulas(last)
    if not formulas or not found or re.search(r"\bnot\b|\?\s*$", last):
        return
    if len(found) == 1:
        yield found[0]
        return
    final = list(_FORMULA.finditer(last))[-1]
    before = last[: final.start()].rstrip()
    if re.search(r"\b(?:is|are|be|equals)\s*:?$", before) and not last[final.end() :].strip(" .*"):
        yield found[-1]


def _last_sentence(text: str) -> str:
    text = text.strip()
    stops = [
        match.end()
        for match in _SENTENCE.finditer(text)
        if text.count("$", 0, match.start()) % 2 == 0 and text[match.end() :].strip(" \n.*")
    ]
    return text[stops[-1] :].strip() if stops else text
