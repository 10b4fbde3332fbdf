"""A hung rank: the ranks that wait for it end, name it, and leave their stacks."""

import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stagecraft.engine.watchdog import Watchdog

RANK = """
import sys, threading, time, pathlib
from stagecraft.engine.watchdog import Watchdog
rank, directory = int(sys.argv[1]), pathlib.Path(sys.argv[2])
lost, early = (int(value) for value in sys.argv[3:])  # the step in which rank 1 is caught, before or after it says that it is in it

def endless():
    while True:
        pass

for _ in range(120):  # as servers and readers of data have them
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()

with Watchdog(directory, rank, 2, 6) as watchdog:
    for step in range(1, 1000):
        if early and (rank, step) == (1, lost):
            endless()
        watchdog.beat(step)
        if (rank, step) == (1, lost):
            endless()
        print(step, flush=True)
        (directory / f"done-{rank}-{step}").touch()
        while not (directory / f"done-{1 - rank}-{step}").exists():  # each waits for the other
            time.sleep(0.05)
        time.sleep(0.1)
"""


def start(rank, directory, lost=0, early=False):
    return subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(directory), str(lost), str(int(early))],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})


def test_a_stopped_rank_is_named_by_the_one_that_waits_for_it(tmp_path):
    ranks = [start(rank, tmp_path) for rank in range(2)]
    try:
        while not list(tmp_path.glob("done-1-3")):
            time.sleep(0.05)
        ranks[1].send_signal(signal.SIGSTOP)
        _, error = ranks[0].communicate(timeout=60)
    finally:
        ranks[1].kill()
    assert ranks[0].returncode == 75
    assert "rank 1 has been silent for" in error and "rank 0 has waited" in error and "Traceback" not in error
    assert re.search(r'^Main thread .*\n  File "<string>", line \d+ in <module>\n', (tmp_path / "stack-0.txt").read_text())


@pytest.mark.parametrize("early", [True, False], ids=["a step behind", "in the same step"])
def test_a_rank_in_an_endless_loop_is_named_with_its_line(tmp_path, early):
    (tmp_path / "heartbeat-3").write_text('[1, "of a rank that there was before"]')
    ranks = [start(rank, tmp_path, lost=3, early=early) for rank in range(2)]
    try:
        _, error = ranks[0].communicate(timeout=60)
    finally:
        ranks[1].kill()
    assert ranks[0].returncode == 75
    assert "silent" not in error and "rank 3" not in error
    assert re.search(r"rank 1 is behind, in step 3 at <string>:\d+ \(endless\)" if early else
                     r"all ranks are alive and in this step, .*rank 1 at <string>:\d+ \(endless\)", error), error


def test_a_rank_that_was_itself_stopped_goes_on(tmp_path):
    ranks = [start(rank, tmp_path) for rank in range(2)]
    try:
        while not list(tmp_path.glob("done-1-3")):
            time.sleep(0.05)
        for rank in ranks:
            rank.send_signal(signal.SIGSTOP)
        time.sleep(8)
        seen = len(list(tmp_path.glob("done-*")))
        for rank in ranks:
            rank.send_signal(signal.SIGCONT)
        time.sleep(2)
        assert [rank.poll() for rank in ranks] == [None, None]
        assert len(list(tmp_path.glob("done-*"))) > seen
    finally:
        for rank in ranks:
            rank.kill()


TOGETHER = """
import sys, pathlib
import torch, torch.distributed as dist
from stagecraft.engine.watchdog import Watchdog, group_timeout
rank, directory = int(sys.argv[1]), pathlib.Path(sys.argv[2])
dist.init_process_group("gloo", f"file://{directory}/store", timeout=group_timeout(20), rank=rank, world_size=2)
with Watchdog(directory / "ranks", rank, 2, 20 if rank else 10) as watchdog:
    for step in range(1, 1000):
        dist.all_reduce(torch.ones(100 + step))
        while (rank, step) == (1, 5):
            pass
        watchdog.beat(step)
"""


def test_what_the_ranks_leave_of_their_collectives_says_who_did_not_come(tmp_path):
    ranks = [subprocess.Popen([sys.executable, "-c", TOGETHER, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}) for rank in range(2)]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [75, 75], said
    assert "its last collectives are in collectives_0" in said[0] and re.search(r"rank 1 .*at <string>:\d+ \(<module>\)", said[0])
    left = [pickle.loads((tmp_path / "ranks" / f"collectives_{rank}").read_bytes())["entries"] for rank in range(2)]
    sums = [[entry["input_sizes"][0] for entry in each if entry["profiling_name"] == "gloo:all_reduce"] for each in left]
    assert sums == [[[100 + step] for step in range(1, last + 1)] for last in (6, 5)]


@pytest.mark.parametrize("beats, said", [
    ({0: (0, 7, "a"), 1: (3.5, 7, "b"), 2: (4, 6, "c")}, "rank 1 has been silent for 4 s, rank 2 has been silent for 4 s"),
    ({0: (0, 7, "a"), 1: (2.5, 6, "b"), 2: (0, 7, "c")}, "rank 1 is behind, in step 7 at b"),
    ({0: (0, 7, "a"), 1: (2.5, 7, "b"), 2: (0, 7, "a")}, "all ranks are alive and in this step, rank 1 at b, rank 0 and 1 more at a")])
def test_a_rank_is_silent_after_half_the_time_else_behind_else_at_another_line(tmp_path, monkeypatch, beats, said):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    for rank, (ago, step, place) in beats.items():
        path = tmp_path / f"heartbeat-{rank}"
        path.write_text(json.dumps([step, place]))
        os.utime(path, (now - ago,) * 2)
    assert Watchdog(tmp_path, 0, 3, seconds=6)._waited_for() == said


def test_a_watch_of_no_seconds_is_none(tmp_path):
    with Watchdog(tmp_path / "ranks", 0, 1, seconds=0) as watchdog:
        watchdog.beat(1)
        assert not any(thread.name == "watchdog" for thread in threading.enumerate())
    assert not (tmp_path / "ranks").exists()


def test_a_full_disk_does_not_end_the_watch(tmp_path):
    """Files of this process may not grow at all for a while: a heartbeat meets an OSError, as it does without space."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Watchdog(tmp_path, 0, 1, seconds=8) as watchdog:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            time.sleep(2.5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        watchdog.beat(1)
        time.sleep(2.5)
        assert json.loads((tmp_path / "heartbeat-0").read_text())[0] == 1
