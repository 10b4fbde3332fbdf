"""Kinds of files, by suffix."""

from __future__ import annotations

from pathlib import PurePosixPath

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
CODE = frozenset(
    ".py .pyi .c .h .cc .cpp .hpp .cu .java .js .ts .go .rs .rb .sh .sql .r .jl .scala .kt .swift .cs .php .pl .lua .proto .cmake .el .hs "
    ".ml .vim .m4".split())
_PROSE = frozenset(".txt .md .rst .text .tex".split())
SUFFIXES = {
    **dict.fromkeys(CODE | _PROSE, "text"), ".html": "html", ".htm": "html", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
    ".warc": "warc",
}


def kind_of(name: str) -> str | None:
    """`text`, `html`, `jsonl`, `parquet` or `warc`; None if the suffix, a compression's aside, is of no known kind."""
    return SUFFIXES.get(suffix_of(name))


def suffix_of(name: str) -> str:
    """The suffix in lower case, without that of a compression: `.jsonl` of `rows.jsonl.zst`."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def compression_of(name: str) -> str | None:
    """fsspec's name of the compression, if any."""
    return COMPRESSED.get(PurePosixPath(name.lower()).suffix)
