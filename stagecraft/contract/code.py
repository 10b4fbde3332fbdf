"""Which code a stage runs, and its digest: a change of any other makes nothing stale, and no work in progress is begun anew for it."""

from __future__ import annotations

import ast
from pathlib import Path

from stagecraft.contract.files import digest_of, sha256

_ROOT = Path(__file__).parents[2]
_CONTRACT = ("stagecraft/contract/manifest.py", "stagecraft/contract/runner.py")
_ASIDE = ("component.py", "dry_run.py", "foresee.py", "memory.py")  # of a component: they describe it before it runs
_KINDS = (".py", ".yaml", ".cpp", ".hpp", ".jinja")


def code_of(root: Path, stage: str) -> list[str]:
    """The component, and the packages and modules of `stagecraft` that it reaches, as paths below the root of the repository."""
    return [f"components/{stage}", *_packages_of(root, stage), *_CONTRACT]


def code_digest(stage: str) -> str:
    """Hex SHA-256 over the sources of a stage and the tables they read, names included."""
    sources = {}
    for place in map(_ROOT.joinpath, code_of(_ROOT, stage)):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix in _KINDS and not (path.name in _ASIDE and path.parent == _ROOT / "components" / stage):
                sources[path.relative_to(_ROOT).as_posix()] = sha256(path)
    return digest_of(sources)


def _packages_of(root: Path, stage: str) -> list[str]:
    """The packages and modules of `stagecraft`, contract apart, that the imports of `components/<stage>` reach, as paths."""
    seen: set[Path] = set()
    waiting = [path for path in sorted((root / "components" / stage).rglob("*.py")) if path.name not in _ASIDE]
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
