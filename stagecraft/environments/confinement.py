"""Runs Python that nobody vouches for: in bubblewrap, with limits, or not at all.

Inside there is no network, no file but a read-only Python and an empty, bounded directory, no other process to see or signal, and
bounded processor time, wall time, memory, processes and output. Nothing is read back but what was written to the two output streams.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stagecraft.contract.errors import UserError
from stagecraft.environments import seccomp
from stagecraft.environments.api import Environment

WORK = "/work"  # where the program is started, and the only place it can write to

# The first thing that runs inside: it still has the right to change its user, which the program no longer has. Limits on processes do
# not bind root, so a sandbox that root opens runs as a user of its own.
_LAUNCHER = """\
import json, os, resource, sys
ask = json.load(sys.stdin)
for name, most in ask["limits"].items():
    resource.setrlimit(getattr(resource, name), (most, most))
if ask["user"]:
    os.setgroups([]), os.setgid(ask["user"]), os.setuid(ask["user"])
for path, text in ask["files"].items():
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w") as stream:
        stream.write(text)
sys.path.insert(0, "")
exec(compile(ask["program"], "program", "exec"), {"__name__": "__main__", "given": ask["given"]})
"""


@dataclass(frozen=True)
class Limits:
    """What a confined program may take, in bytes and seconds; processor time is for each process.

    Memory is that of all processes together, of which each may take an equal part: no limit but a control group's, which an unprivileged
    user cannot set, bounds a sum.
    """

    cpu_seconds: int = 5
    wall_seconds: float = 10.0
    memory: int = 2**30
    processes: int = 4
    file_bytes: int = 2**20  # of any file, the output streams included
    disk_bytes: int = 16 * 2**20
    open_files: int = 64


@dataclass(frozen=True)
class Outcome:
    """How it ended: `status` is the exit status (128 + signal for a signal), None if the wall time was up or nothing was run."""

    status: int | None
    out: str = ""
    error: str = ""
    refused: str = ""  # why nothing was run

    @property
    def too_slow(self) -> bool:
        """The wall time or the processor time was up (SIGXCPU; the hard limit is SIGKILL)."""
        return not self.refused and self.status in (None, 128 + 24, 128 + 9)


def refuse_without_sandbox(environments: Iterable[Environment], where: str) -> None:
    """Refuse environments that run what a policy writes, where nothing is run: they would never reward.

    Raises:
        UserError: there are some, and there is no sandbox here.
    """
    confined = [environment.name for environment in environments if environment.confined]
    if confined and (refused := confine("").refused):
        raise UserError(f"{', '.join(confined)} takes a sandbox, which there is not here: {refused}", where=where,
                        mend="leave it out, or have a resource server play it where there is one (rl.environment_servers)")


def confine(program: str, given: Any = None, files: Mapping[str, str] | None = None, limits: Limits = Limits()) -> Outcome:
    """Run a Python program in the sandbox.

    Args:
        program: its text; the name `given` is bound to the argument of that name, the standard library can be imported.
        given: anything JSON can say.
        files: relative path -> text, laid into the working directory before the program starts.

    Raises:
        ValueError: a path that leaves the working directory.
    """
    files = files or {}
    for path in files:
        if path.startswith("/") or not path or {"", ".", ".."} & set(path.split("/")):
            raise ValueError(f"{path!r} is no plain relative path")
    bwrap = shutil.which("bwrap")
    if bwrap is None or not seccomp.available():
        return Outcome(None, refused="bubblewrap on x86-64 Linux is needed to run code that nobody vouches for")
    user = 2_000_000_000 + secrets.randbelow(100_000_000) if os.geteuid() == 0 else 0
    ask = {"program": program, "given": given, "files": dict(files), "user": user, "limits": {
        "RLIMIT_AS": limits.memory // limits.processes, "RLIMIT_NPROC": limits.processes, "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_FSIZE": limits.file_bytes, "RLIMIT_NOFILE": limits.open_files, "RLIMIT_CORE": 0}}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error, tempfile.TemporaryFile() as told, \
            tempfile.TemporaryFile() as denied:
        denied.write(seccomp.program())
        denied.seek(0)
        command = [bwrap, *walls(user, limits), "--seccomp", str(denied.fileno()), "--json-status-fd", str(told.fileno()),
                   sys._base_executable, "-I", "-S", "-c", _LAUNCHER]
        try:
            subprocess.run(command, input=json.dumps(ask).encode(), stdout=out, stderr=error, timeout=limits.wall_seconds,
                           pass_fds=(told.fileno(), denied.fileno()))
        except subprocess.TimeoutExpired:
            return Outcome(None, _read(out), _read(error))
        ends = [line["exit-code"] for line in map(json.loads, _read(told).splitlines()) if "exit-code" in line]
        if not ends:  # bubblewrap is there, but this kernel does not let it work
            return Outcome(None, refused=_read(error).strip())
        return Outcome(ends[0], _read(out), _read(error))


def walls(user: int, limits: Limits) -> list[str]:
    """bubblewrap's arguments: namespaces, mounts and rights."""
    prefix = Path(sys.base_prefix).resolve()
    # On the host the way to Python may be closed to others (/root is); here it is open, and leads nowhere else.
    way = [argument for parent in reversed(prefix.parents[:-1]) for argument in ("--perms", "0755", "--dir", str(parent))]
    mounts = [argument for path in ("/usr", "/lib", "/lib64", "/bin") for argument in ("--ro-bind-try", path, path)]
    rights = (["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if user else
              ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"])
    return ["--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", *rights, "--die-with-parent",
            "--new-session", "--clearenv", *way, *mounts, "--ro-bind", str(prefix), str(prefix), "--dev", "/dev", "--remount-ro", "/dev",
            "--perms", "0777", "--size", str(limits.disk_bytes), "--tmpfs", WORK, "--remount-ro", "/", "--chdir", WORK]


def _read(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")
