"""Which rules a text must pass, and their thresholds: datatrove 0.10.1's defaults unless a project says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("gopher", "repetition", "c4", "fineweb")
ANY_LANGUAGE = ("repetition",)  # the others know English: its stop words, how long its words are, how its sentences end
Grams = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RuleBounds:
    """Thresholds; a text fails on the far side of one, so a minimum of 0 or a maximum of infinity switches a rule off.

    Shares lie in [0, 1]. `top_grams` and `duplicate_grams` are (n, largest share of the characters), checked in their order.
    `c4_min_sentences` and `c4_min_words_per_line` count as in datatrove, where -1 switches them off.
    """

    families: tuple[str, ...] = FAMILIES
    gopher_min_words: int = 50
    gopher_max_words: float = 100_000
    gopher_min_mean_word: float = 3
    gopher_max_mean_word: float = 10
    gopher_max_symbols_per_word: float = 0.1
    gopher_max_bullet_lines: float = 0.9
    gopher_max_ellipsis_lines: float = 0.3
    gopher_min_letter_words: float = 0.8
    gopher_min_stop_words: int = 2
    gopher_stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    repetition_max_duplicate_paragraphs: float = 0.3
    repetition_max_duplicate_paragraph_characters: float = 0.2
    repetition_max_duplicate_lines: float = 0.3
    repetition_max_duplicate_line_characters: float = 0.2
    repetition_top_grams: Grams = ((2, 0.2), (3, 0.18), (4, 0.16))
    repetition_duplicate_grams: Grams = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    c4_min_sentences: int = 5
    c4_min_words_per_line: int = 3
    c4_max_word_length: float = 1000
    c4_lorem_ipsum: bool = True
    c4_curly_bracket: bool = True
    c4_javascript: bool = True
    c4_policy: bool = True
    fineweb_min_punctuated_lines: float = 0.12
    fineweb_allow_no_punctuated_line: bool = False
    fineweb_max_short_lines: float = 0.67
    fineweb_short_line: int = 30
    fineweb_max_duplicate_line_characters: float = 0.01
    fineweb_max_newlines_per_word: float = 0.3
