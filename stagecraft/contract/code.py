"""Which code a stage runs, and its digest: a change of what `.dvcignore` names makes nothing stale and begins no work in progress anew."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from stagecraft.contract.files import digest_of, sha256

_ROOT = Path(__file__).parents[2]
# What of the contract shapes outputs: how rows are padded, figures are drawn, manifests written, stages run.
_CONTRACT = tuple(f"stagecraft/contract/{name}.py" for name in ("division", "figures", "manifest", "runner"))
_ASIDE = ".dvcignore"  # what describes a stage or lies beside it: one list, for DVC and for us
_KINDS = (".py", ".yaml", ".cpp", ".hpp", ".jinja")


def code_of(root: Path, stage: str) -> list[str]:
    """The component, and the packages and modules of `stagecraft` that it reaches, as paths below the root of the repository."""
    return [f"components/{stage}", *_packages_of(root, stage), *_CONTRACT]


def code_digest(stage: str) -> str:
    """Hex SHA-256 over the sources of a stage and the tables they read, names included."""
    sources = {}
    for place in map(_ROOT.joinpath, code_of(_ROOT, stage)):
        for path in _files(_ROOT, place) if place.is_dir() else [place]:
            if path.suffix in _KINDS:
                sources[path.relative_to(_ROOT).as_posix()] = sha256(path)
    return digest_of(sources)


def _files(root: Path, directory: Path) -> Iterator[Path]:
    """What is below a directory, sorted, less what `.dvcignore` names."""
    aside = GitIgnoreSpec.from_lines((root / _ASIDE).read_text().splitlines())
    return (path for path in sorted(directory.rglob("*")) if not aside.match_file(path.relative_to(root)))


def _packages_of(root: Path, stage: str) -> list[str]:
    """The packages and modules of `stagecraft`, contract apart, that the imports of `components/<stage>` reach, as paths."""
    seen: set[Path] = set()
    waiting = [path for path in _files(root, root / "components" / stage) if path.suffix == ".py"]
    packages: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for module in _imports(path):
            parts = module.split(".")
            if parts[0] != "stagecraft" or len(parts) < 2 or parts[1] == "contract":
                continue
            package = root / "stagecraft" / parts[1]
            if package.is_dir():
                packages.add(f"stagecraft/{parts[1]}")
                waiting += sorted(package.rglob("*.py"))
            elif package.with_suffix(".py").is_file():
                packages.add(f"stagecraft/{parts[1]}.py")
                waiting.append(package.with_suffix(".py"))
    return sorted(packages)


def _imports(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules
