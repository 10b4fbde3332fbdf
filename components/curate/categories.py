"""Which of the sixteen categories of the Nemotron 3 Super blend a document belongs to, by cheap rules that look at it alone.

The names are those of the technical report (arXiv 2604.12374, section 2.3.7 and figure 10) in kebab-case: its `Crawl++` is
`crawl-plus-plus`, its `finepdfs` and `finepdfs-high` are one category, and `syn-crawl-medium` is called syn-crawl-medium-high in its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from components.curate.reading.kinds import CODE as CODE_SUFFIXES
from components.curate.reading.kinds import suffix_of

CODE = "code"
CATEGORIES: tuple[str, ...] = (
    "syn-crawl-high", CODE, "syn-crawl-medium", "stem-sft", "crawl-high", "math", "finepdfs", "crawl-medium-high", "multilingual",
    "code-sft", "nemotron-cc-code", "crawl-medium", "crawl-plus-plus", "academic", "wiki", "general-sft",
)

_CHARACTERS = 8_000  # of the text's beginning; a document's kind shows there
_MARKUP = frozenset((".md", ".rst", ".tex", ".html", ".htm"))  # texts, however much code they quote
_ENGLISH = frozenset(("", "en", "eng", "code", "und"))  # `code`, `und`: no natural language was found
_CRAWL, _SYNTHETIC_CRAWL = "crawl-medium", "syn-crawl-medium"
# Nemotron-CC (arXiv 2412.02595) has five buckets; the blend drops its two lowest, which here share the name of the third.
_BY_TIER = {"crawl": {5: "crawl-high", 4: "crawl-medium-high"}, "syn-crawl": {5: "syn-crawl-high"}}
_LOWEST = {"crawl": _CRAWL, "syn-crawl": _SYNTHETIC_CRAWL}
_FAMILY = {"crawl-high": "crawl", "crawl-medium-high": "crawl", _CRAWL: "crawl", "syn-crawl-high": "syn-crawl",
           _SYNTHETIC_CRAWL: "syn-crawl"}

_HOSTS = {
    "wikipedia.org": "wiki", "wikibooks.org": "wiki", "wikiversity.org": "wiki", "wikisource.org": "wiki", "wiktionary.org": "wiki",
    "arxiv.org": "academic", "biorxiv.org": "academic", "medrxiv.org": "academic", "ncbi.nlm.nih.gov": "academic", "jstor.org": "academic",
    "reddit.com": "crawl-plus-plus", "math.stackexchange.com": "math", "mathoverflow.net": "math",
}
_SOURCES = {"wikipedia": "wiki", "wiki": "wiki", "arxiv": "academic", "pubmed": "academic", "openwebtext": "crawl-plus-plus",
            "bigscience": "crawl-plus-plus", "reddit": "crawl-plus-plus", "finepdfs": "finepdfs"}
_KEYWORDS = frozenset("""
    assert async await break case class const continue def elif else end enum except export extern finally fn for from func function if
    impl import include interface let match mod namespace package private protected public raise return static struct switch template
    throw trait try type typedef using val var void while with yield
""".split())
_ASSIGNMENT = re.compile(r"[\w.\[\]\"'*&>-]+(?:, ?[\w.]+)* ?(?:[-+*/|&%:]?=|<-)(?!=) ?\S")
_LICENCE = ("permission is hereby granted", "redistribution and use in source", "licensed under the", "without warrant", "merchantability",
            "shall not be liable", "be liable for", "all rights reserved", "general public licen", "applicable law", "patent licen",
            "terms and conditions", "this agreement", "this license", "this licence")
_WORD = re.compile(r"[a-z]+")
_MATH = frozenset("""
    algebra algebraic arithmetic axiom calculus coefficient coefficients combinatorics congruent conjecture corollary cosine denominator
    derivative derivatives determinant differentiable divisible divisor eigenvalue eigenvector eigenvalues equation equations exponent
    factorial fraction fractions geometry hypotenuse inequality infinity integer integers integral integrals irrational lemma limit
    logarithm logarithms matrices matrix modulo multiply multiplied numerator odd even parabola permutation permutations polynomial
    polynomials prime primes probability product proof prove quadratic quotient remainder root roots sine slope square squares squared
    squaring sum tangent theorem triangle triangles variance vector vectors
""".split())
_STEM = frozenset("""
    acceleration acid algorithm amino antibiotics antibodies atom atomic atoms bacteria bacterium biology boiling carbon catalyst cell
    cells chemical chemistry chlorophyll chromosome circuit climate compound concentration current density dioxide dna earthquake
    earthquakes electric electron electrons energy entropy enzyme enzymes equilibrium evolution evolved experiment experiments frequency
    galaxies galaxy gas gene genes genetic genome gravitational gravity heat host hydrogen hypothesis infection inheritance inherited ion
    ions isotope kinetic liquid magma magnetic mantle mass membrane metabolism mitochondria molecule molecules momentum motion mutation
    neuron neurons neutron nitrogen nucleus orbit organism organisms oxygen particle particles photon photons photosynthesis physics
    planet planets plates potassium pressure protein proteins proton protons quantum radiation reaction reactions resistance resistor
    resistors ribosomes rna semiconductor sediment sodium species star stars substrate sugar temperature theory thermodynamics tissue
    vaccine vaccines velocity virus viruses volcanoes voltage volume wavelength
""".split())
_TEX = re.compile(r"\\(?:frac|sum|int|sqrt|begin\{(?:equation|align|pmatrix)|alpha|theta|mathbb|left|cdot|leq|geq|lim)\b")
_SYMBOLS = re.compile(r"[∑∫√≤≥∈∀∃≡∞⊂∪∩²³]| = ")
_CITATION = re.compile(r"(?<=\s)\[\d{1,3}(?:[,–-] ?\d{1,3})*\]|\bet al\b|\bdoi[:.]|\bin this paper\b|\bwe (?:propose|present|show that)\b"
                       r"|\((?:[a-z]\w+ )+(?:and )?\w*,? ?(?:19|20)\d\d[a-z]?\)|^(?:abstract|references|bibliography)\W*$", re.MULTILINE)
_QUESTION = re.compile(r"[ \t>*#_\"-]{0,8}(?:q|question|problem|exercise|user|human|instruction|prompt|task)\b[ \d*]{0,6}[:.]")
_ANSWER = re.compile(r"(?:^|[.?!]\s)[ \t>*#_\"-]{0,8}(?:a|answer|solution|assistant|response)\b[ \d*]{0,6}[:.]", re.MULTILINE)
_WIKI = ("from wikipedia, the free encyclopedia", "\n== references ==", "\n==references==", "\n== external links ==", "\n== see also ==")


def is_code(metadata: Mapping[str, Any]) -> bool:
    """Whether a document is source code, by the category it comes with or else by its file's name."""
    given = metadata.get("category")
    return given == CODE if given in CATEGORIES else _suffix(metadata) in CODE_SUFFIXES


def category(text: str, metadata: Mapping[str, Any], tier: int | None = None) -> str:
    """One of `CATEGORIES`. White space around the text does not matter.

    In this order: the category that the document comes with; the kind of file; language; where it comes from; what the text is like.
    What is left is web text: crawl of the quality that `tier` says, medium if it is not known.

    Args:
        metadata: all optional: `category`, `path` (below the source, perhaps with `:row`), `source`, `url`, `mime`, `language` (an
            ISO 639 code), `synthetic` (made by a model).
        tier: quality, 1 to 5.
    """
    if metadata.get("category") in CATEGORIES:
        return str(metadata["category"])
    if is_code(metadata):
        return CODE
    found = _category(text.strip()[:_CHARACTERS], metadata)
    return found if tier is None else blend_key(found, tier)


def blend_key(category: str, tier: int) -> str:
    """The category with the tier in it: crawl and synthetic crawl get the name of their quality, others keep theirs.

    Args:
        tier: 1 to 5. Crawl: 5 is high, 4 medium-high, below medium; synthetic crawl: 5 is high, below medium.
    """
    family = _FAMILY.get(category)
    return _BY_TIER[family].get(tier, _LOWEST[family]) if family else category


def code_share(text: str) -> float:
    """Share of the first 200 lines, blank ones aside, that look like a program's; 0 for fewer than five lines."""
    lines = [line for line in map(str.strip, text.split("\n")) if line][:200]
    if len(lines) < 5:
        return 0.0
    return sum(map(_is_code, lines)) / len(lines)


def _is_code(line: str) -> bool:
    last = line[-1]
    if last in "{};" or line[0] in "})]@" or line.startswith((">>> ", "#include", "//", "/*")):
        return True
    if line.partition(" ")[0].rstrip(":(") in _KEYWORDS and (last in ":)(=\\" or line.startswith(("import ", "from ", "return", "raise"))):
        return True
    return _ASSIGNMENT.match(line) is not None or (last == ")" and "(" in line and " " not in line.partition("(")[0])


def _category(text: str, metadata: Mapping[str, Any]) -> str:
    share, suffix = code_share(text), _suffix(metadata)
    if share >= 0.7 and suffix not in _MARKUP:
        return CODE
    if re.split(r"[-_]", str(metadata.get("language") or "").lower())[0] not in _ENGLISH:
        return "multilingual"
    host, path = _split_url(str(metadata.get("url") or ""))
    if suffix == ".pdf" or metadata.get("mime") == "application/pdf" or path.endswith(".pdf"):
        return "finepdfs"
    known = _SOURCES.get(str(metadata.get("source") or "").lower()) or _by_host(host) or ("academic" if suffix == ".tex" else None)
    return known or _by_text(text, share, bool(metadata.get("synthetic")))


def _by_text(text: str, code: float, synthetic: bool) -> str:
    lower = text.lower()
    if any(mark in lower for mark in _WIKI):
        return "wiki"
    words = _WORD.findall(lower)
    formulas = len(_TEX.findall(text))
    terms = sum(word in _MATH for word in words) + formulas
    # Numbers with signs are no mathematics by themselves: logs and tables are full of them.
    math = _density(terms + min(len(_SYMBOLS.findall(text)), 2 * terms), len(words) + formulas)
    stem = _density(sum(word in _STEM for word in words), len(words))
    if _QUESTION.match(lower) and _ANSWER.search(lower):
        return "code-sft" if code >= 0.2 else "stem-sft" if max(math, stem) >= 0.03 else "general-sft"
    if sum(phrase in lower for phrase in _LICENCE) > 1 + len(words) // 500:  # legal text, which no category has: web text of its tier
        return _CRAWL
    if code >= 0.3:
        return "nemotron-cc-code"
    if math >= 0.07 and math >= stem:
        return "math"
    if stem >= 0.07 or _density(len(_CITATION.findall(lower)), len(words)) >= 0.01:
        return "academic"
    return _SYNTHETIC_CRAWL if synthetic else _CRAWL


def _density(found: int, words: int) -> float:
    """Matches per word; one or two in a short text are an accident."""
    return found / max(words, 1) if found > 2 else 0.0


def _suffix(metadata: Mapping[str, Any]) -> str:
    return suffix_of(re.sub(r":\d+$", "", str(metadata.get("path") or "")))


def _split_url(url: str) -> tuple[str, str]:
    """(host, path) in lower case; empty for what is no URL."""
    try:
        parts = urlsplit(url.lower())
        return parts.hostname or "", parts.path
    except ValueError:
        return "", ""


def _by_host(host: str) -> str | None:
    """The category of the host or of the nearest of its parents."""
    while host:
        if host in _HOSTS:
            return _HOSTS[host]
        host = host.partition(".")[2]
    return None
