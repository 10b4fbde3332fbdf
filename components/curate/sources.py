"""Where the text comes from: the files that are on every machine with Python, or a directory of the user's."""

from __future__ import annotations

import re
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from components.curate.document import Document, identify, size
from components.curate.readers import READERS, UnreadableError
from stagecraft.contract.errors import UserError

SYSTEM = "system"
_NO_PROSE = {"test", "tests", "idle_test", "encodings", "site-packages", "__pycache__"}  # odd on purpose, or tables
_LICENCE = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)


@dataclass
class Collection:
    """What was read.

    Args:
        documents: ordered by id, which is a hash: any prefix is an unbiased sample and no directory order matters.
        broken: file -> why it could not be read.
        files: files offered, read or not.
        left_out: files not read because the sample was full.
    """

    documents: list[Document] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    files: int = 0
    left_out: int = 0


def collect(where: str, sample_bytes: int) -> Collection:
    """Read documents, in an order that depends on their names alone, until the sample is full.

    Args:
        where: `system`, or a directory of `.txt .md .rst .py .jsonl .parquet` files.
        sample_bytes: stop after the document that fills this many UTF-8 bytes.

    Raises:
        UserError: the directory is missing, or holds no file of these kinds, or none that could be read.
    """
    offered = _system_files() if where == SYSTEM else _directory_files(Path(where))
    ordered = sorted(offered, key=lambda item: identify(item[0], item[1]))
    collection, taken = Collection(files=len(ordered)), 0
    for index, (source, name, path) in enumerate(ordered):
        if taken >= sample_bytes:
            collection.left_out = len(ordered) - index
            break
        try:
            texts, unreadable_rows = READERS.get(path.suffix.lower(), READERS[".txt"])(path)
        except (OSError, UnreadableError) as error:
            collection.broken[f"{source}/{name}"] = str(error)
            continue
        collection.broken.update({f"{source}/{name}:{row}": why for row, why in unreadable_rows.items()})
        read = [Document(source, f"{name}:{row}" if row else name, text) for row, text in texts]
        taken += size(read)
        collection.documents += read
    if not collection.documents:
        why = next(iter(f"{name}: {why}" for name, why in collection.broken.items()), "no files")
        raise UserError(f"no readable text ({why})", where=where, mend="give a directory of text, JSON lines or Parquet files")
    collection.documents.sort(key=lambda document: document.id)
    return collection


def _system_files() -> list[tuple[str, str, Path]]:
    """(source, name, path) of the standard library's modules, and of the descriptions and licences of installed packages."""
    paths = sysconfig.get_paths()
    library, packages = Path(paths["stdlib"]), Path(paths["purelib"])
    found = [("stdlib", path.relative_to(library).as_posix(), path) for path in library.rglob("*.py")
             if not _NO_PROSE & set(path.relative_to(library).parts)]
    for path in packages.glob("*.dist-info/**/*"):
        name = path.relative_to(packages).as_posix()
        if path.name == "METADATA":
            found.append(("descriptions", name, path))
        elif _LICENCE.match(path.name) and path.is_file():
            found.append(("licences", name, path))
    return found


def _directory_files(root: Path) -> list[tuple[str, str, Path]]:
    if not root.is_dir():
        raise UserError("no such directory", where=str(root), mend=f"set curate.input to a directory, or to `{SYSTEM}`")
    found = [("input", path.relative_to(root).as_posix(), path) for path in root.rglob("*")
             if path.is_file() and path.suffix.lower() in READERS]
    if not found:
        raise UserError(f"holds no {' '.join(READERS)} file", where=str(root), mend="put text there or name another directory")
    return found
