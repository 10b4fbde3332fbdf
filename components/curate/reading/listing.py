"""Which files there are to read: those of every machine with Python, a directory, a file, or an fsspec URI."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec

from components.curate.reading.kinds import SUFFIXES, kind_of
from stagecraft.contract.errors import UserError

SYSTEM, SYSTEM_DOCS = "system", "system+docs"
_STDLIB, _INPUT = "stdlib", "input"
_NO_PROSE = {"test", "tests", "idle_test", "encodings", "site-packages", "__pycache__"}  # odd on purpose, or tables
_LICENCE = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
_MANUAL = re.compile(r"\.[1-9]\w*(\.gz)?$")
_MEND = "put text there or name another place"


@dataclass(frozen=True)
class File:
    """A file to read.

    Args:
        source: the kind of place it comes from: `stdlib`, `descriptions`, `licences`, `docs`, `manuals`, or the first directory
            of its path, or `input` where there is none or it is called `stdlib` or `input`.
        name: its path below the source's root.
        path: where it is: a local path or an fsspec URI.
        size: bytes.
        stamp: changes when the file does.
        kind: how it is read, see `kinds`.
    """

    source: str
    name: str
    path: str
    size: int
    stamp: str
    kind: str


def list_files(where: str) -> list[File]:
    """The readable files of a place, by source and name.

    Args:
        where: `system` (the standard library's modules, descriptions and licences of installed packages), `system+docs`
            (/usr/share/doc and /usr/share/man besides), a directory, a file, or an fsspec URI.

    Raises:
        UserError: there is no such place, or no file of a known kind.
    """
    if where in (SYSTEM, SYSTEM_DOCS):
        found = [*_system(), *(_docs() if where == SYSTEM_DOCS else ())]
    elif "://" in where:
        found = list(_remote(where))
    else:
        found = list(_local(Path(where)))
    if not found:
        raise UserError(f"holds no file of a known kind ({' '.join(sorted(SUFFIXES))}; also compressed)", where=where, mend=_MEND)
    return sorted(found, key=lambda file: (file.source, file.name))


def _system() -> Iterator[File]:
    paths = sysconfig.get_paths()
    library, packages = Path(paths["stdlib"]), Path(paths["purelib"])
    for path in library.rglob("*.py"):
        if not _NO_PROSE & set(path.relative_to(library).parts):
            yield _file(_STDLIB, path, library, "text")
    for path in packages.glob("*.dist-info/**/*"):
        if path.name == "METADATA":
            yield _file("descriptions", path, packages, "metadata")
        elif _LICENCE.match(path.name) and path.is_file():
            yield _file("licences", path, packages, "text")


def _docs() -> Iterator[File]:
    for source, root in (("docs", Path("/usr/share/doc")), ("manuals", Path("/usr/share/man"))):
        for path in _walk(root):
            if source == "manuals":
                kind = "manual" if _MANUAL.search(path.name) else None
            else:
                kind = kind_of(path.name) or ("text" if "." not in path.name.removesuffix(".gz") else None)
            if kind:
                yield _file(source, path, root, kind)


def _local(root: Path) -> Iterator[File]:
    if root.is_file():
        if kind := kind_of(root.name):
            yield _file(_INPUT, root, root.parent, kind)
        return
    if not root.is_dir():
        raise UserError("no such directory or file", where=str(root), mend=f"set curate.input to a directory, or to `{SYSTEM}`")
    for path in _walk(root):
        if kind := kind_of(path.name):
            source, _ = _placed(path.relative_to(root).parts)
            yield _file(source, path, root if source == _INPUT else root / source, kind)


def _placed(parts: tuple[str, ...]) -> tuple[str, str]:
    """(source, name below it) of a file of the user's, by its path: a directory with a name that means something here is no source."""
    return (_INPUT, "/".join(parts)) if len(parts) == 1 or parts[0] in (_INPUT, _STDLIB) else (parts[0], "/".join(parts[1:]))


def _walk(root: Path) -> Iterator[Path]:
    """Regular files below `root`; nothing hidden, no symbolic links, which would leave the root or repeat what is in it."""
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink() and not any(part.startswith(".") or part == "__pycache__"
                                                                for part in path.relative_to(root).parts):
            yield path


def _file(source: str, path: Path, root: Path, kind: str) -> File:
    status = path.stat()
    return File(_spelt(source), _spelt(path.relative_to(root).as_posix()), str(path), status.st_size, str(status.st_mtime_ns), kind)


def _spelt(name: str) -> str:
    """The name as text: bytes of it that are no UTF-8, as older systems left them, by their numbers."""
    return name.encode("utf-8", "backslashreplace").decode()


def _remote(where: str) -> Iterator[File]:
    try:
        filesystem, root = fsspec.core.url_to_fs(where)
        entries = filesystem.find(root, detail=True)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"cannot list: {error}", where=where, mend="name a URI that fsspec can open here") from None
    for path, entry in entries.items():
        name = PurePosixPath(path).relative_to(root).as_posix() if path != root else PurePosixPath(path).name
        kind = kind_of(PurePosixPath(path).name)
        if kind and not any(part.startswith(".") for part in PurePosixPath(name).parts):
            source, below = _placed(PurePosixPath(name).parts)
            stamp = next((str(entry[key]) for key in ("ETag", "etag", "mtime", "created") if entry.get(key)), "")
            yield File(source, below, filesystem.unstrip_protocol(path), int(entry["size"] or 0), stamp, kind)
