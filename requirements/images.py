"""Builds the images of the stages: `make images`, or `python3 requirements/images.py [STAGE ...]`. Needs Python and podman or docker.

Package indexes are those of this machine: pip's own configuration goes in as build secrets, which leave no trace in an image, and
local paths that it names are mounted while a step runs. Where no registry is within reach, `--debian` makes the base from
Debian's packages, with the sources of this machine's apt (mmdebstrap).
"""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
DEBIAN = "localhost/debian-python:bookworm"
# What python:slim has and Stagecraft needs: Python with its headers (kernels are compiled against them), venv, certificates.
DEBIAN_PACKAGES = "ca-certificates,python3,python3-venv,libpython3-dev"
# Left out, of packages installed later on too (a compiler's own libraries have to come in).
DEBIAN_WITHOUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/lib/*libpython*.a")
# As in the images of a registry: apt keeps neither packages nor its caches, which a layer would.
DEBIAN_APT = 'APT::Keep-Downloaded-Packages "false"; Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";'
APT_SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))
CERTIFICATES = "/run/certificates.pem"  # as in components/Containerfile


def main() -> None:
    """Build the bases and the stages asked for."""
    stages = sorted(path.parent.name for path in ROOT.glob("components/*/Containerfile"))
    parser = argparse.ArgumentParser(prog="images.py", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"images to build (default: all of {', '.join(stages)})")
    parser.add_argument("--tool", default=os.environ.get("CONTAINER_TOOL"),
                        help="podman or docker (default: $CONTAINER_TOOL, or the first found)")
    parser.add_argument("--debian", action="store_true", help="make the base from Debian's packages; needs root, mmdebstrap and podman")
    parser.add_argument("--base-only", action="store_true", help="with --debian: make no more than that base")
    parser.add_argument("--from", dest="base", metavar="IMAGE", help="build on this image with Python 3.11 or later instead of python:slim")
    parser.add_argument("--torch-index", default=os.environ.get("TORCH_INDEX", ""), metavar="URL",
                        help="where pip finds a CPU build of torch, if not on its usual indexes (default: $TORCH_INDEX)")
    options = parser.parse_args()
    if unknown := [stage for stage in options.stages if stage not in stages]:
        fail(f"{unknown[0]}: no such stage - choose from {', '.join(stages)}")
    tool = find_tool(options.tool)
    base = debian(tool) if options.debian else options.base
    if options.base_only:
        return
    shared = {"TORCH_INDEX": options.torch_index, **({"PYTHON_IMAGE": base} if base else {})}
    with tempfile.TemporaryDirectory() as scratch:
        mounts = pip_configuration(tool, Path(scratch))
        for target in ("base", "compiler"):
            build(tool, "components/Containerfile", target, shared, ["--target", target, *mounts])
    for stage in options.stages or stages:
        containerfile = f"components/{stage}/Containerfile"
        on = re.search(r"^ARG BASE=localhost/stagecraft-(\w+):dev$", (ROOT / containerfile).read_text(), re.MULTILINE)[1]
        build(tool, containerfile, stage, {"BASE": name(on)})


def find_tool(wanted: str | None) -> str:
    """The program that builds."""
    for tool in [wanted] if wanted else ["podman", "docker"]:
        if shutil.which(tool):
            return tool
    fail(f"{wanted or 'podman or docker'}: not found - install podman (Debian, Ubuntu: apt install podman) or Docker")


def name(image: str) -> str:
    """An image's name, as `stagecraft.contract.images` gives it."""
    return f"{os.environ.get('STAGECRAFT_REGISTRY', 'localhost')}/stagecraft-{image}:{os.environ.get('STAGECRAFT_TAG', 'dev')}"


def build(tool: str, containerfile: str, image: str, arguments: dict[str, str], more: Iterable[str] = ()) -> None:
    """One image of the project's tree; its layers are cached (podman wants to be told)."""
    given = [f"--build-arg={key}={value}" for key, value in arguments.items() if value]
    run(tool, "build", *(["--layers"] if tool == "podman" else []), "--file", containerfile, "--tag", name(image), *given, *more, ".")
    print(f"built {name(image)}", flush=True)


def pip_configuration(tool: str, scratch: Path) -> list[str]:
    """The options that bring this machine's pip configuration, files and environment together, into a build."""
    settings: dict[str, str] = {}
    for line in run(sys.executable, "-m", "pip", "config", "list", capture=True).splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'\"").replace("\\n", "\n")
    local = {path for value in settings.values() for path in re.findall(r"(?<!\S)/\S+", value) if Path(path).exists()}
    # An index in a directory links to files beside it.
    local |= {str(Path(path).parent) for value in settings.values() for path in re.findall(r"file://(/[^\s#]+)", value)}
    secrets = []
    if certificates := settings.get("cert"):
        local.discard(certificates)
        settings["cert"] = CERTIFICATES
        secrets += ["--secret", f"id=certificates,src={certificates}"]
    if local and tool != "podman":
        fail(f"pip's configuration names {min(local)}, which only podman can mount while it builds - use --tool podman")
    merged = configparser.ConfigParser(interpolation=None)
    merged["global"] = {key: value.replace("\n", "\n  ") for key, value in settings.items()}
    with open(scratch / "pip.conf", "w") as stream:
        merged.write(stream)
    volumes = [f"--volume={path}:{path}:ro" for path in sorted(local)]
    return ["--secret", f"id=pip,src={scratch / 'pip.conf'}", *secrets, *volumes]


def debian(tool: str) -> str:
    """Make the base from Debian's packages."""
    if not shutil.which("mmdebstrap") or os.geteuid() != 0 or tool != "podman":
        fail("--debian needs root, podman and mmdebstrap - install it (Debian, Ubuntu: apt install mmdebstrap)")
    sources = [path for place in APT_SOURCES for path in (sorted(place.iterdir()) if place.is_dir() else [place])
               if path.suffix in (".list", ".sources") and path.is_file()]
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch) / "debian.tar"
        run("mmdebstrap", "--quiet", "--variant=apt", f"--include={DEBIAN_PACKAGES}",
            *[f"--dpkgopt=path-exclude={path}" for path in DEBIAN_WITHOUT],
            f"--customize-hook=echo '{DEBIAN_APT}' > \"$1\"/etc/apt/apt.conf.d/99-no-cache", "bookworm", str(archive), *map(str, sources))
        run(tool, "import", "--quiet", str(archive), DEBIAN)
    print(f"built {DEBIAN}", flush=True)
    return DEBIAN


def run(*command: str, capture: bool = False) -> str:
    """Run a command in the project; its failure is ours."""
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE if capture else None, check=False)
    if done.returncode != 0:
        fail(f"{' '.join(command[:2])} failed with status {done.returncode}")
    return done.stdout or ""


def fail(reason: str) -> NoReturn:
    """End as every command of the project does on a user's mistake."""
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
