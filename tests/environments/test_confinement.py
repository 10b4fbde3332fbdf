"""Attempts to get out of the sandbox or to harm the machine from within: all fail, and each succeeds once its wall is taken down.

Every attempt is bounded, so that it does no harm where a wall is missing.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from stagecraft.environments import confinement, seccomp
from stagecraft.environments.confinement import Limits, confine
from stagecraft.environments.sandbox import call_confined, run_confined
from tests.processes import below

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
FEW = Limits(cpu_seconds=10, wall_seconds=30.0, memory=512 * 2**20, processes=8)  # time enough on a slow machine for what ends by itself
SHORT = replace(FEW, cpu_seconds=1, wall_seconds=3.0)

FORK_BOMB = """
import os, time
made = 0
try:
    for _ in range(40):
        if os.fork() == 0:
            time.sleep(1); os._exit(0)
        made += 1
except OSError:
    pass
print(made)
"""
MEMORY_BOMB = """
try:
    held = bytearray(600 * 2**20)
    print(len(held))
except MemoryError:
    print(0)
"""
FORKED_MEMORY = """
import os, time
reads, writes = os.pipe()
held, made = [], 0
try:
    for _ in range(6):
        if os.fork() == 0:
            try:
                while len(held) < 100:
                    held.append(b"x" * 2**20)
            except MemoryError:
                pass
            os.write(writes, bytes([len(held)]))
            time.sleep(20)
            os._exit(0)
        made += 1
except OSError:
    pass
print(sum(os.read(reads, 1)[0] for _ in range(made)))
"""
SHARED_MEMORY = """
import ctypes
c = ctypes.CDLL(None)
print(sum(c.shmget(0, 2**20, 0o1600) >= 0 for _ in range(20)))
"""
NAMELESS_FILES = """
import os
made = 0
try:
    for _ in range(20):
        made += os.write(os.memfd_create("x"), bytes(2**20)) // 2**20
except OSError:
    pass
print(made)
"""
MESSAGES = """
import ctypes
c = ctypes.CDLL(None)
print(sum(c.msgget(0, 0o1600) >= 0 for _ in range(20)))
"""
DISK_BOMB = """
written = 0
try:
    for number in range(60):
        with open(f"f{number}", "wb") as stream:
            written += stream.write(bytes(900_000))
except OSError:
    pass
print(written // 2**20)
"""
NETWORK = """
import socket
try:
    socket.create_connection(("127.0.0.1", given), 1)
    print(1)
except OSError:
    print(0)
"""
OTHER_SOCKETS = """
import socket
def opens(family, kind):
    try:
        socket.socket(family, kind).close()
        return True
    except OSError:
        return False
usual = all(opens(family, socket.SOCK_STREAM) for family in (socket.AF_UNIX, socket.AF_INET)) and socket.socketpair()
print(sum(opens(family, socket.SOCK_RAW if family == 16 else socket.SOCK_STREAM) for family in (16, 40)) if usual else -1)
"""
READ_HOST = """
import os
print(int(os.path.exists(given)))
"""
SYMLINK = """
import os
os.symlink(given, "link")
try:
    print(len(open("link").read()))
except OSError:
    print(0)
"""
WRITE_SYSTEM = """
import os
done = 0
for place in ("/usr/x", "/x", "/dev/x", "/dev/shm/x", os.path.dirname(os.__file__) + "/x"):
    try:
        open(place, "w").close(); done += 1
    except OSError:
        pass
print(done)
"""
KILL_PARENT = """
import os
try:
    os.kill(given, 9)
    print(1)
except OSError:
    print(0)
"""
NEW_NAMESPACE = """
import ctypes
c = ctypes.CDLL(None, use_errno=True)
print(int(c.unshare(0x10000000) == 0 or c.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) > 0))
"""
ROOT = """
import os
def left():
    try:
        os.setuid(0)
        return os.getuid() == 0
    except OSError:
        return False
print(int(os.getuid() == 0 or left()))
"""


def said(program, given=None, limits=FEW) -> int:
    done = confine(program, given, limits=limits)
    assert not done.refused
    return int(done.out.split()[-1])


def without(monkeypatch, *arguments):
    """The sandbox less one wall: the arguments are taken out of bubblewrap's, in the order given."""
    whole = confinement.walls

    def fewer(user, limits):
        found = whole(user, limits)
        at = next(i for i in range(len(found)) if found[i:i + len(arguments)] == list(arguments))
        return found[:at] + found[at + len(arguments):]

    monkeypatch.setattr(confinement, "walls", fewer)


def test_a_program_runs_with_what_it_is_given():
    done = confine("import helper, sys; print(helper.twice(given['x'])); print('aside', file=sys.stderr); sys.exit(3)", {"x": 4},
                   {"helper.py": "def twice(x): return 2 * x", "deep/er/file.txt": ""})
    assert (done.status, done.out, done.error, done.refused) == (3, "8\n", "aside\n", "")


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", "a//b", "."])
def test_files_stay_in_the_working_directory(path):
    with pytest.raises(ValueError, match="no plain relative path"):
        confine("", files={path: ""})


def test_fork_bomb():
    assert said(FORK_BOMB) < 8
    assert said(FORK_BOMB, limits=replace(FEW, processes=1000, memory=64 * 2**30)) == 40


def test_memory_bomb():
    assert said(MEMORY_BOMB) == 0
    assert said(MEMORY_BOMB, limits=replace(FEW, memory=8 * 2**30)) > 0


def test_processes_together_have_no_more_memory_than_one_sandbox():
    """Each child of those that can be made takes what it can, up to 100 MB."""
    small = replace(FEW, memory=180 * 2**20, processes=4)
    assert 0 < said(FORKED_MEMORY, limits=small) * 2**20 < small.memory
    assert said(FORKED_MEMORY, limits=replace(small, memory=20 * 2**30)) * 2**20 > small.memory
    assert Limits().memory + Limits().disk_bytes <= 1.1 * 2**30


@pytest.mark.parametrize("attack", [SHARED_MEMORY, NAMELESS_FILES, MESSAGES])
def test_memory_outside_every_limit_is_denied(attack, monkeypatch):
    assert said(attack) == 0
    monkeypatch.setattr(seccomp, "_DENIED", {})
    assert said(attack) == 20


def test_disk_bomb():
    assert said(DISK_BOMB) <= 16
    assert said(DISK_BOMB, limits=replace(FEW, disk_bytes=2**30)) > 50


def test_network(monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert said(NETWORK, server.getsockname()[1]) == 0
        without(monkeypatch, "--unshare-net")
        assert said(NETWORK, server.getsockname()[1]) == 1


def test_sockets_that_a_network_namespace_does_not_hold_are_not_opened(monkeypatch):
    """The kernel's own (netlink), which is there everywhere, and those of a virtual machine to its host (vsock)."""
    assert said(OTHER_SOCKETS) == 0
    monkeypatch.setattr(seccomp, "_FAMILIES", (*seccomp._FAMILIES, 16, 40))
    assert said(OTHER_SOCKETS) > 0


def test_the_hosts_files_cannot_be_read_or_reached_by_a_symbolic_link(monkeypatch, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("word")
    for place in (str(secret), "/etc/passwd", "/proc/self/environ", "/proc/1/root/etc/passwd", "/sys/class"):
        assert said(READ_HOST, place) == 0, place
        assert said(SYMLINK, place) == 0, place
    whole = confinement.walls
    monkeypatch.setattr(confinement, "walls", lambda user, limits: ["--ro-bind", "/etc", "/etc", *whole(user, limits)])
    assert said(READ_HOST, "/etc/passwd") == 1 and said(SYMLINK, "/etc/passwd") > 1


def test_nothing_but_the_working_directory_can_be_written(monkeypatch):
    assert said(WRITE_SYSTEM) == 0
    without(monkeypatch, "--remount-ro", "/dev")
    assert said(WRITE_SYSTEM.replace("/dev/shm/x", "/dev/y")) == (2 if os.geteuid() else 0)  # root's mounts are no other user's to write


def test_the_parent_cannot_be_seen_or_killed(monkeypatch):
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])
    try:
        assert said(KILL_PARENT, victim.pid) == 0
        assert said(KILL_PARENT, os.getpid()) == 0
        done = confine("import os; os.kill(-1, 9)", limits=FEW)
        assert victim.poll() is None and not done.refused
    finally:
        victim.kill()
        victim.wait()
    without(monkeypatch, "--unshare-pid")
    assert said("import os\nprint(os.getpid())") > 10  # it would see the host's numbers


def test_no_new_namespaces_no_root_no_tracing(monkeypatch):
    assert said(NEW_NAMESPACE) == 0
    assert said(ROOT) == 0
    assert said("import ctypes\nprint(int(ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0))") == 0
    monkeypatch.setattr(seccomp, "_DENIED", {})
    assert said("import ctypes\nprint(int(ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0))") == 1


def test_infinite_loop_and_sleep_end():
    started = time.monotonic()
    assert confine("while True: pass", limits=SHORT).too_slow
    assert confine("import time; time.sleep(60)", limits=replace(SHORT, wall_seconds=1.0)).too_slow
    ignoring = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert confine(ignoring, limits=SHORT).too_slow
    assert time.monotonic() - started < 20


def test_children_do_not_outlive_the_program():
    def left():
        return below(os.getpid(), lambda child: child.status() != psutil.STATUS_ZOMBIE)

    before = left()
    confine("import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(30)", limits=SHORT)
    assert confine("import os, time\nos.fork(); time.sleep(30)", limits=replace(SHORT, wall_seconds=0.5)).too_slow
    time.sleep(0.1)
    assert left() == before


def test_huge_output_is_cut():
    done = confine("while True: print('x' * 65536)", limits=SHORT)
    assert len(done.out) <= SHORT.file_bytes and done.status != 0
    assert len(confine("import sys\nwhile True: sys.stderr.write('x' * 65536)", limits=SHORT).error) <= SHORT.file_bytes


def test_only_the_output_streams_come_with_it():
    program = "import os\nprint([f for f in range(64) if os.path.exists(f'/dev/fd/{f}') or not _closed(f)])"
    probe = "import os\ndef _closed(f):\n    try:\n        os.fstat(f)\n        return False\n    except OSError:\n        return True\n"
    assert json.loads(confine(probe + program).out) == [0, 1, 2]
    assert "SECRET" not in confine("import os; print(os.environ)").out


def test_the_environment_stays_outside(monkeypatch):
    monkeypatch.setenv("STAGECRAFT_TEST_SECRET", "SECRET")
    assert "SECRET" not in confine("import os; print(dict(os.environ))").out


def test_it_refuses_where_it_cannot_confine(monkeypatch, tmp_path):
    mark = tmp_path / "ran"
    program = f"open({str(mark)!r}, 'w')"
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    for path, platform in ((str(tmp_path / "nothing"), True), (str(tmp_path), True), (os.environ["PATH"], False)):
        with monkeypatch.context() as patch:
            patch.setenv("PATH", path)
            patch.setattr(seccomp, "available", lambda platform=platform: platform)
            assert confine(program).refused
            assert run_confined(program, []) == "no_sandbox"
            assert call_confined({"m.py": "def f(): return 1"}, "m", "f", [[]]) == ([None], "no_sandbox")
    assert not mark.exists()


def test_calls_are_answered_one_by_one():
    code = "def f(x):\n    if x == 3: raise KeyError\n    if x == 5: raise SystemExit\n    return [x]"
    files = {"pack/__init__.py": "", "pack/code.py": code}
    answers, reason = call_confined(files, "pack.code", "f", [[1], [3], [4], [5], [6]])
    assert answers == [{"value": [1]}, {"raised": "KeyError"}, {"value": [4]}, None, None]
    assert reason == "program_failed" or reason is None


@pytest.mark.parametrize("line", [
    "[1]", "garbage", '{"value": ' + "[" * 200_000, '{"value": 1, "raised": "X"}', '{"raised": ["X"]}', "9" * 5000])
def test_a_forged_answer_is_none(line):
    forged = "import sys\ndef f(line):\n    print('\\n' + sys._getframe(1).f_globals['given']['word'] + line)\n    return 7"
    assert call_confined({"m.py": forged}, "m", "f", [[line], [line]]) == ([None, {"value": 7}], None)


def test_an_answer_that_is_cut_at_the_limit_of_the_output_is_none():
    answers, reason = call_confined({"m.py": "def f(x):\n    return list(range(x))"}, "m", "f", [[3], [10**6], [3]])
    assert answers == [{"value": [0, 1, 2]}, None, None] and reason == "program_failed"


def test_expected_values_are_not_inside():
    spy = "import sys\ndef f(x):\n    return repr([frame for frame in [sys._getframe(1).f_globals['given']]])"
    (answer,), _ = call_confined({"m.py": spy}, "m", "f", [[41]])
    assert re.search(r"\b41\b", answer["value"]) and not re.search(r"\b42\b", answer["value"])  # a random word of digits is there too


def test_a_killed_judge_takes_the_sandbox_with_it(tmp_path):
    code = "from stagecraft.environments.confinement import *\nprint('up', flush=True)\nconfine('import time; time.sleep(20)')"
    judge = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    judge.stdout.readline()
    deadline, inside = time.monotonic() + 15, []
    while len(inside) < 3 and time.monotonic() < deadline:  # bubblewrap outside, its first process inside, Python
        inside = psutil.Process(judge.pid).children(recursive=True)
    assert len(inside) == 3
    judge.send_signal(signal.SIGKILL)
    judge.wait()
    assert not psutil.wait_procs(inside, timeout=5)[1]
