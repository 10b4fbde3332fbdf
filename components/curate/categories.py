"""The category of a document: the sixteen of the recipe's blend (arXiv 2604.12374, section 2).

The report names nine: syn-crawl-high, syn-crawl-medium, crawl-high, code, stem-sft, math, finepdfs, finepdfs-high, multilingual.
The other names are ours, after the categories of the family's earlier reports. What a document's file says of itself goes first;
synthetic texts and PDFs cannot be told from their text, so their rows carry a `category`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from components.curate.reading.kinds import CODE as CODE_SUFFIXES
from components.curate.reading.kinds import suffix_of

CODE = "code"
CATEGORIES = (
    "crawl-medium", "crawl-high", "crawl-plus", "syn-crawl-medium", "syn-crawl-high", CODE, "web-code", "math", "academic", "wikipedia",
    "finepdfs", "finepdfs-high", "multilingual", "general-sft", "stem-sft", "code-sft",
)
_HEAD = 20_000  # characters looked at
_WORDS = re.compile(r"[a-z]+")
_MATH = frozenset("theorem lemma proof equation integer integers prime polynomial matrix vector integral derivative fraction algebra "
                  "geometry probability variance logarithm modulo arithmetic summation".split())
_ACADEMIC = frozenset("hypothesis experiment experiments molecule protein cell cells quantum electron temperature velocity species enzyme "
                      "neural dataset abstract physics chemistry biology astronomy et al doi".split())
_DENSE = 0.01  # share of the words that makes a subject
_GOOD = 4      # tier from which crawled text counts as high


def is_code(metadata: Mapping[str, Any]) -> bool:
    """Whether a document is source code, by what its row or its file's name says."""
    given = metadata.get("category")
    return given == CODE if given in CATEGORIES else suffix_of(re.sub(r":\d+$", "", metadata["path"])) in CODE_SUFFIXES


def category(text: str, metadata: Mapping[str, Any], tier: int) -> str:
    """One of CATEGORIES.

    Args:
        metadata: `path`; `language` (ISO 639); `category` and `url` if the row had them.
        tier: quality, 1 to 5; what is left over is crawled text, high or medium.
    """
    if metadata.get("category") in CATEGORIES:
        return metadata["category"]
    if is_code(metadata):
        return CODE
    if metadata["language"] not in ("en", "und"):
        return "multilingual"
    if "wikipedia.org/" in metadata.get("url", ""):
        return "wikipedia"
    words = _WORDS.findall(text[:_HEAD].lower())
    shares = {name: sum(word in subject for word in words) for name, subject in (("math", _MATH), ("academic", _ACADEMIC))}
    subject = max(shares, key=shares.__getitem__)
    if shares[subject] > _DENSE * len(words):
        return subject
    return "crawl-high" if tier >= _GOOD else "crawl-medium"
