"""The rules over the compiled scan decide as datatrove's stock filters do with the same words, on real and on random text."""

import re
from pathlib import Path
from sysconfig import get_path

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.text import TERMINAL_PUNCTUATION
from datatrove.utils.word_tokenizers import WordTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curate.rules.bounds import FAMILIES, RuleBounds
from components.curate.rules.check import failed_rule
from stagecraft.data.scan import WORD, scan

TOKEN = re.compile(r"\w+|([^\w\s])\1*")
CLOSING = re.escape("\"')]}”’»」』）" + "".join(sorted(TERMINAL_PUNCTUATION)) + "！")
WIDE = "。！？｡"
STOP = re.escape("".join(sorted(TERMINAL_PUNCTUATION - set(WIDE))))
SENTENCE_END = re.compile(rf"(?:[{STOP}][{CLOSING}]*+\s++|[{WIDE}][{CLOSING}]*+\s*+)(?=\S)")
EXAMPLES = settings(max_examples=150, deadline=None, derandomize=True)


class Regex(WordTokenizer):
    """The definition of word and sentence, in regular expressions."""

    def word_tokenize(self, text: str) -> list[str]:
        return [match.group() for match in TOKEN.finditer(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = [*(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
        return list(zip([0, *ends[:-1]], ends))

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:end] for start, end in self.span_tokenize(text)]


REGEX = Regex()
STOCK = {
    "gopher": GopherQualityFilter(language=REGEX),
    "repetition": GopherRepetitionFilter(language=REGEX),
    "c4": C4QualityFilter(filter_no_terminal_punct=False, language=REGEX),
    "fineweb": FineWebQualityFilter(language=REGEX),
}
REASONS = {
    "gopher": {
        "gopher_short_doc": "few_words", "gopher_long_doc": "many_words", "gopher_below_avg_threshold": "short_mean_word",
        "gopher_above_avg_threshold": "long_mean_word", "gopher_too_many_hashes": "hash_symbols", "gopher_too_many_ellipsis": "ellipses",
        "gopher_too_many_bullets": "bullet_lines", "gopher_too_many_end_ellipsis": "ellipsis_lines",
        "gopher_below_alpha_threshold": "few_letter_words", "gopher_enough_stop_words": "few_stop_words",
    },
    "repetition": {
        "empty": "empty", "dup_para_frac": "dup_para_frac", "dup_para_char_frac": "dup_para_char_frac", "dup_line_frac": "dup_line_frac",
        "dup_line_char_frac": "dup_line_char_frac", **{f"top_{n}_gram": f"top_{n}_gram" for n in (2, 3, 4)},
        **{f"duplicated_{n}_n_grams": f"dup_{n}_gram" for n in range(3, 11)},
    },
    "c4": {"lorem_ipsum": "lorem_ipsum", "curly_bracket": "curly_bracket", "too_few_sentences": "few_sentences"},
    "fineweb": {"empty": "empty", "line_punct_ratio": "line_punctuation", "short_line_ratio": "short_lines",
                "char_dup_ratio": "dup_line_chars", "list_ratio": "list_lines"},
}


def stock(text: str, family: str, filters=STOCK) -> str | None:
    """The stock filter's reason, under our name for it."""
    result = filters[family].filter(Document(text=text, id=""))
    return None if result is True else f"{family}_{REASONS[family][result[1]]}"


def real_texts() -> list[str]:
    """Sources, package descriptions, licences and documents of this machine, at most 40,000 characters of each."""
    library, packages = Path(get_path("stdlib")), Path(get_path("purelib"))
    paths = [*sorted(library.glob("*.py"))[:100], *sorted(packages.glob("*.dist-info/METADATA"))[:100],
             *sorted(packages.glob("*.dist-info/**/LICENSE*"))[:60],
             *sorted(path for path in Path("/usr/share/doc").glob("*/*") if path.suffix in {"", ".txt"} and path.is_file())[:150]]
    return [path.read_text("utf-8", "replace")[:40_000] for path in paths]


@pytest.mark.parametrize("family", FAMILIES)
def test_real_texts_are_decided_as_by_the_stock_filter(family):
    bounds, texts = RuleBounds(families=(family,)), real_texts()
    found = [failed_rule(text, bounds) for text in texts]
    assert found == [stock(text, family) for text in texts]
    assert len(texts) > 150 and 0 < sum(reason is None for reason in found) < len(texts)  # both outcomes are compared


# Pieces that every rule looks at, so that random texts come near the thresholds.
PIECES = st.sampled_from([
    "the", "be", "of", "word", "Another", "a", "x1", "42", "_", "longerthanmostwords" * 2, "naïve", "İ", "ΣΑΣ", "\0", "\ud800",
    "１", "日本語", "😀", "#", "...", "…", "....", "•", "-", "---", "==", "!", ".", "?", '."', "。", "！」", "{", "}", "ab c", "a bc",
    "[1]", "[٣]", "[]", "[edit]", "[citation needed]", "[citation", "[", "]", "x" * 1001, "Lorem ipsum", "lor", "em ipsum",
    "JavaScript", "java", "script", "Terms of use", "use cookies", "uses cooKies", "privacy policy", "one and the same line again.\n",
    " ", " ", " ", " ", " ", "\n", "\n", "\n\n", "\n\n\n", "\r\n", "\r", "\t", "\x0b", "\x1c", "\x85", "\u2028", "\u3000",
])
TEXTS = st.one_of(
    st.lists(PIECES, max_size=120).map("".join), st.lists(PIECES, max_size=12).map(lambda pieces: "".join(pieces) * 9),
    st.lists(st.sampled_from(["the", "and", "cat", "sat", ".\n", "ok. "]), min_size=60, max_size=120).map(" ".join), st.text(max_size=60),
)
LOW = {  # thresholds so low that the first rules pass and the later ones are reached
    "gopher": (RuleBounds(families=("gopher",), gopher_min_words=1, gopher_min_mean_word=1.5, gopher_min_letter_words=0.3,
                          gopher_min_stop_words=1, gopher_max_symbols_per_word=0.3),
               GopherQualityFilter(1, 100_000, 1.5, 10, 0.3, 0.9, 0.3, 0.3, 1, language=REGEX)),
    "repetition": (RuleBounds(families=("repetition",), repetition_max_duplicate_paragraphs=0.7,
                              repetition_max_duplicate_paragraph_characters=0.7, repetition_max_duplicate_lines=0.7,
                              repetition_max_duplicate_line_characters=0.6, repetition_top_grams=((2, 0.5), (3, 0.5), (4, 0.5)),
                              repetition_duplicate_grams=((5, 0.5), (6, 0.45), (3, 0.4), (10, 0.3))),
                   GopherRepetitionFilter(0.7, 0.7, 0.6, 0.7, ((2, 0.5), (3, 0.5), (4, 0.5)), ((5, 0.5), (6, 0.45), (3, 0.4), (10, 0.3)),
                                          language=REGEX)),
    "c4": (RuleBounds(families=("c4",), c4_min_words_per_line=-1, c4_curly_bracket=False, c4_min_sentences=3),
           C4QualityFilter(filter_no_terminal_punct=False, min_words_per_line=-1, filter_curly_bracket=False, min_num_sentences=3,
                           language=REGEX)),
    "fineweb": (RuleBounds(families=("fineweb",), fineweb_allow_no_punctuated_line=True, fineweb_max_short_lines=0.9,
                           fineweb_max_duplicate_line_characters=0.2, fineweb_short_line=10),
                FineWebQualityFilter(line_punct_exclude_zero=True, short_line_thr=0.9, char_duplicates_ratio=0.2, short_line_length=10,
                                     language=REGEX)),
}


@pytest.mark.parametrize("family", FAMILIES)
@given(text=TEXTS)
@EXAMPLES
def test_random_texts_are_decided_as_by_the_stock_filter(family, text):
    assert failed_rule(text, RuleBounds(families=(family,))) == stock(text, family)
    bounds, filter_ = LOW[family]
    assert failed_rule(text, bounds) == stock(text, family, {family: filter_})


@given(text=st.one_of(TEXTS, st.text(st.characters(codec="utf-8"), max_size=200)))
@EXAMPLES
def test_the_scan_is_what_the_regex_and_split_give(text):
    scanned = scan(text)
    assert [text[a:b] for a, b in zip(scanned.token_start, scanned.token_end)] == REGEX.word_tokenize(text)
    words = re.findall(r"\w+", text)
    assert [text[a:b] for a, b in zip(scanned.word_start, scanned.word_end)] == words
    lines = text.split("\n")
    assert [text[a:b] for a, b in zip(scanned.line_start, scanned.line_end)] == lines
    assert scanned.line_blank.tolist() == [not line.strip() for line in lines]
    lower = ["".join(low if len(low := character.lower()) == 1 else character for character in word) for word in words]
    written = scanned.token_polynomial[(scanned.token_class & WORD) != 0]
    for strings, hashes in ((words, written), (lower, scanned.word_hash_lower), (lines, scanned.line_hash)):
        assert len(set(zip(strings, hashes.tolist()))) == len(set(strings)) == len(set(hashes.tolist()))


def test_a_word_has_one_hash_wherever_it_stands():
    first, second = scan("River bank").word_hash_lower, scan("the RIVER, the bank.").word_hash_lower
    assert first.tolist() == second[[1, 3]].tolist()
    value = ((ord("a") + 1) * 0x9E3779B97F4A7C15 + ord("b") + 1) % 2**64  # in Python's integers: later runs must find the same
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    assert scan("Ab").word_hash_lower.tolist() == [value ^ value >> 31]


def test_the_tables_cover_all_of_unicode():
    assert not [code for code in range(0x40000, 0x110000) if chr(code).isalnum() or chr(code).isspace() or chr(code).lower() != chr(code)]
    assert [code for code in range(0x110000) if len(chr(code).lower()) > 1] == [0x130]


def test_families_apply_in_their_order():
    text = "lorem ipsum dolor sit amet"
    assert failed_rule(text, RuleBounds()) == "gopher_few_words"
    assert failed_rule(text, RuleBounds(families=("c4", "gopher"))) == "c4_lorem_ipsum"
    assert failed_rule(text, RuleBounds(families=())) is None


def test_rules_are_switched_off_by_a_number_as_parameters_have_it():
    text = "Lorem ipsum dolor sit amet."
    off = dict.fromkeys(("c4_lorem_ipsum", "c4_javascript", "c4_policy", "c4_curly_bracket", "c4_min_sentences"), 0.0)
    assert failed_rule(text, RuleBounds(families=("c4",), c4_javascript=0.0)) == "c4_lorem_ipsum"
    assert failed_rule(text, RuleBounds(families=("c4",), **off)) is None
