"""Runs a program's assertions: our templates' code here, a model's code in bubblewrap or not at all.

In the sandbox there is no network, no file but a read-only Python, no other process to see, and bounded memory, time and output.
A program that sets out to look correct without being so can still do that; it cannot get out.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

_SECONDS, _MEMORY, _OUTPUT = 5, 512 * 2**20, 2**20  # bytes
_RUN = """\
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({output}, {output}))
given = json.load(sys.stdin)
names, say = {{"__name__": "program"}}, sys.stdout.write
exec(given["code"], names)
for each in given["asserts"]:
    exec(each, names)
say("\\n" + given["word"])
"""


def run_here(code: str, asserts: list[str]) -> str | None:
    """Execute trusted code and its assertions in this process; the reason if one fails."""
    names: dict[str, object] = {"__name__": "program"}
    try:
        exec(compile("\n".join([code, *asserts]), "program", "exec"), names)
    except AssertionError:
        return "assertion_failed"
    except Exception:
        return "program_failed"
    return None


def run_confined(code: str, asserts: list[str]) -> str | None:
    """Execute code and its assertions in bubblewrap; the reason if it fails, or if there is no bubblewrap."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "no_sandbox"
    word = secrets.token_hex(8)  # written at the end, so that an early exit is no success
    command = [bwrap, *_confinement(), sys._base_executable, "-I", "-S", "-c",
               _RUN.format(memory=_MEMORY, seconds=_SECONDS, output=_OUTPUT)]
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        try:
            done = subprocess.run(command, input=json.dumps({"code": code, "asserts": asserts, "word": word}).encode(), stdout=said,
                                  stderr=complained, timeout=2 * _SECONDS)
        except subprocess.TimeoutExpired:
            return "program_too_slow"
        out, error = (_read(stream) for stream in (said, complained))
    if error.startswith("bwrap:"):
        return "no_sandbox"  # there is one, but this kernel does not let it work
    if done.returncode == 0 and out.endswith("\n" + word):
        return None
    return "assertion_failed" if "\nAssertionError" in error else "program_failed"


def _read(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")


def _confinement() -> list[str]:
    prefix = str(Path(sys.base_prefix).resolve())
    mounts = [argument for path in ("/usr", "/lib", "/lib64", "/bin") for argument in ("--ro-bind-try", path, path)]
    return ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--uid", "65534", "--gid", "65534", *mounts,
            "--ro-bind", prefix, prefix, "--dev", "/dev", "--chdir", "/"]
