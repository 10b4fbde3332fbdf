"""Instruction following that a program can check: the constraints of IFEval (arXiv 2311.07911), and requests made of them.

The names and arguments of the constraints are IFEval's, so that its data is judged by the same code. Where the original splits
sentences with a trained model, full stops, question and exclamation marks do it here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

from stagecraft.data.language import LanguageId
from stagecraft.data.tasks.words import NOUNS

Check = Callable[..., bool]

_INDENT = r"[^\S\n]*"  # of a line: where blank lines counted, each of a flood of them would be read as often as there are lines before it


def _compared(found: int, wanted: int, relation: str) -> bool:
    return found >= wanted if relation == "at least" else found < wanted


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if _words(part)]


def _paragraphs(text: str, rule: str = r"\n\s*\n") -> list[str]:
    return [part for part in re.split(rule, text.strip()) if part.strip()]


def _occurs(text: str, word: str) -> int:
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def _is_json(text: str) -> bool:
    bare = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def _is_language(text: str, language: str) -> bool:
    return _identifier().identify(text)[0] == language


@cache
def _identifier() -> LanguageId:
    return LanguageId()


def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = _paragraphs(text, r"\n\n")
    if len(parts) != num_paragraphs or not 0 < nth_paragraph <= len(parts):
        return False
    return (_words(parts[nth_paragraph - 1]) or [""])[0].lower() == first_word.lower()


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _title(text: str) -> bool:
    # A line is read to its last end of a title: every beginning without one would have the rest of the line read.
    lines = (line[:line.rfind(">>") + 2] for line in text.split("\n"))
    return any(part.strip() for line in lines for part in re.findall(r"<<(.+?)>>", line))


def _constrained(text: str) -> bool:
    return any(option in text for option in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compared(sum(word.isupper() for word in _words(text)), capital_frequency, capital_relation)


CHECKS: dict[str, Check] = {
    "keywords:existence": lambda text, keywords: all(_occurs(text, word) for word in keywords),
    "keywords:forbidden_words": lambda text, forbidden_words: not any(_occurs(text, word) for word in forbidden_words),
    "keywords:frequency": lambda text, keyword, frequency, relation: _compared(_occurs(text, keyword), frequency, relation),
    "keywords:letter_frequency": lambda text, letter, let_frequency, let_relation: _compared(
        text.lower().count(letter.lower()), let_frequency, let_relation),
    "language:response_language": _is_language,
    "length_constraints:number_sentences": lambda text, num_sentences, relation: _compared(
        len(_sentences(text)), num_sentences, relation),
    "length_constraints:number_paragraphs": lambda text, num_paragraphs: (
        len(_paragraphs(text, r"\s?\*\*\*\s?")) == num_paragraphs),
    "length_constraints:number_words": lambda text, num_words, relation: _compared(len(_words(text)), num_words, relation),
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        len(re.findall(r"\[[^\[\]]+\]", text)) >= num_placeholders),
    "detectable_content:postscript": lambda text, postscript_marker: bool(
        re.search(rf"^{_INDENT}{re.escape(postscript_marker)}", text, re.IGNORECASE | re.MULTILINE)),
    "detectable_format:number_bullet_lists": lambda text, num_bullets: (
        len(re.findall(rf"^{_INDENT}(?:\*(?!\*)|-)\s*\S", text, re.MULTILINE)) == num_bullets),
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": lambda text, num_highlights: (
        len(re.findall(r"\*\*[^\n*]+\*\*|\*[^\n*]+\*", text)) >= num_highlights),
    "detectable_format:multiple_sections": lambda text, section_spliter, num_sections: (
        len(re.findall(rf"\b{re.escape(section_spliter)}\s+\w+", text)) >= num_sections),
    "detectable_format:json_format": _is_json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": lambda text, end_phrase: text.strip().strip('"').lower().endswith(end_phrase.strip().lower()),
    "startend:quotation": lambda text: len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] == '"',
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text: text.isupper() and _is_language(text.lower(), "en"),
    "change_case:english_lowercase": lambda text: text.islower() and _is_language(text, "en"),
    "punctuation:no_comma": lambda text: "," not in text,
}


def held(text: str, names: Sequence[str], arguments: Sequence[dict[str, Any] | None]) -> list[bool]:
    """Which constraints a text keeps; an empty text keeps none. Null arguments are as good as none."""
    return [bool(text.strip()) and CHECKS[name](text, **{key: value for key, value in (given or {}).items() if value is not None})
            for name, given in zip(names, arguments, strict=True)]


def draw_request(random: Random, constraints: int) -> tuple[str, list[str], list[dict[str, Any]]]:
    """A request about a word with that many constraints at most: (prompt, names, arguments).

    Two constraints of one kind may exclude each other: then there is one.
    """
    about, noun = random.sample(NOUNS, 2)
    drawn = [make(random, noun) for make in random.sample(_MADE, constraints)]
    if len({name.partition(":")[0] for name, _, _ in drawn}) < len(drawn):
        drawn = drawn[:1]
    return (" ".join([f"Say something about a {about}.", *(words for _, _, words in drawn)]),
            [name for name, _, _ in drawn], [arguments for _, arguments, _ in drawn])


def _bullets(count: int) -> tuple[str, dict[str, Any], str]:
    return "detectable_format:number_bullet_lists", {"num_bullets": count}, f"Answer with {count} lines that start with a dash."


def _short(count: int) -> tuple[str, dict[str, Any], str]:
    return "length_constraints:number_words", {"num_words": count, "relation": "less than"}, f"Use fewer than {count} words."


# What requests are made of: (name, arguments, the words that ask for it), drawn with a generator and a noun.
_MADE: tuple[Callable[[Random, str], tuple[str, dict[str, Any], str]], ...] = (
    lambda random, noun: ("punctuation:no_comma", {}, "Use no commas."),
    lambda random, noun: ("startend:quotation", {}, "Put the whole answer in double quotation marks."),
    lambda random, noun: ("keywords:existence", {"keywords": [noun]}, f"Use the word {noun}."),
    lambda random, noun: ("keywords:forbidden_words", {"forbidden_words": [noun]}, f"Avoid the word {noun}."),
    lambda random, noun: ("startend:end_checker", {"end_phrase": f"the {noun}"}, f"End with: the {noun}"),
    lambda random, noun: _bullets(random.randint(2, 4)),
    lambda random, noun: _short(random.randint(5, 9)),
)
