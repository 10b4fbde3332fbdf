"""The machine and the network: limits of a container, a clock that is behind, adapters in the kernel's own files."""

import os
import socket
import subprocess
import time
from importlib import metadata
from types import SimpleNamespace

import psutil
import pytest

from stagecraft.contract import container
from stagecraft.contract.environment import describe_environment
from stagecraft.doctor import machine, network, process, speed
from stagecraft.doctor.node import Bound, load
from stagecraft.doctor.verdict import Check, attempt, verdict

LAPTOP, H100 = load("laptop"), load("h100")


def named(checks):
    return {check.name: check for check in checks}


def test_this_machine_as_other_programs_see_it(tmp_path):
    checks = named(machine.machine_checks(LAPTOP, tmp_path))
    cores = int(subprocess.run(["nproc"], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}).stdout)
    assert checks["machine.cores"].found.startswith(f"{cores} of ")
    disk = subprocess.run(["df", "-B1", "--output=avail", str(tmp_path)], capture_output=True, text=True, check=True).stdout.split()[-1]
    assert abs(float(checks["machine.disk"].found.split()[0]) - int(disk) / 1e9) <= 1.5
    assert f"of {psutil.virtual_memory().total / 1e9:.1f} GB" in checks["machine.memory"].found


def test_a_container_gets_less_than_the_machine_has(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("2000000000\n")
    monkeypatch.setattr(container, "CGROUP", tmp_path)
    checks = named(machine.machine_checks(LAPTOP, tmp_path))
    assert checks["machine.cores"].status == ("warn" if len(os.sched_getaffinity(0)) > 1 else checks["machine.cores"].status)
    assert machine.cores() == min(1.5, len(os.sched_getaffinity(0)))
    assert checks["machine.memory"].status == "warn" and "of 2.0 GB" in checks["machine.memory"].found
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cores() == len(os.sched_getaffinity(0))


def test_what_a_container_uses_already_is_not_free(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "CGROUP", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64_000_000_000, available=60_000_000_000))
    for name, text in (("memory.max", "16000000000\n"), ("memory.current", "12000000000\n"), ("memory.stat", "inactive_file 3000000000\n")):
        (tmp_path / name).write_text(text)
    assert machine._memory(LAPTOP).found == "7.0 GB free of 16.0 GB"
    assert describe_environment()["memory_gb"] == 16.0


def test_a_clock_that_is_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    check = named(machine.machine_checks(LAPTOP, tmp_path))["machine.clock"]
    assert check.status == "fail" and "behind" in check.found


def test_packages_against_the_lock(tmp_path):
    lock = tmp_path / "lock"
    numpy = metadata.version("numpy")
    lock.write_text(f"# made by hand\nnumpy=={numpy}\ntorch=={metadata.version('torch').partition('+')[0]}\n")
    assert machine._packages(lock).status == "ok"
    lock.write_text("numpy==0.0.1\nno-such-package==1\n")
    check = machine._packages(lock)
    assert check.status == "warn" and check.found == f"numpy {numpy} instead of 0.0.1; no-such-package is missing"
    assert machine._packages(tmp_path / "none").status == "skip"


def test_a_variable_that_contradicts_the_profile(monkeypatch, tmp_path):
    monkeypatch.setenv("NVLINK_DOMAIN_SIZE", "72")
    check = named(machine.machine_checks(H100, tmp_path))["machine.environment"]
    assert check.status == "warn" and "NVLINK_DOMAIN_SIZE=72 (not 8)" in check.found


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert named(machine.machine_checks(LAPTOP, tmp_path))["machine.disk"].status == "fail"
    assert speed._disk(LAPTOP, tmp_path)[0].status == "skip"


def port(root, name, state="4: ACTIVE", rate="400 Gb/sec (4X NDR)", layer="InfiniBand"):
    directory = root / name / "ports" / "1"
    directory.mkdir(parents=True)
    for file, text in (("state", state), ("rate", rate), ("link_layer", layer)):
        (directory / file).write_text(f"{text}\n")


@pytest.fixture
def adapters(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "INFINIBAND", tmp_path)
    return tmp_path


def test_eight_ports_and_slower_ones_for_storage(adapters):
    for index in range(8):
        port(adapters, f"mlx5_{index}")
    port(adapters, "mlx5_8", rate="100 Gb/sec (4X EDR)", layer="Ethernet")
    port(adapters, "mlx5_9", state="1: DOWN")
    checks = named(network.network_checks(H100))
    assert checks["network.ports"].status == checks["network.rate"].status == "ok"
    assert checks["network.ports"].found == "9 active (InfiniBand, RoCE); not active: mlx5_9/1 1: DOWN"


@pytest.mark.parametrize(("spoil", "name", "status"), [
    ({"state": "2: INIT"}, "network.ports", "fail"),
    ({"state": "\udcff"}, "network.ports", "fail"),
    ({"rate": "garbage"}, "network.ports", "fail"),
    ({"rate": "200 Gb/sec (4X HDR)"}, "network.rate", "fail"),
])
def test_a_port_that_is_not_well(adapters, spoil, name, status):
    for index in range(7):
        port(adapters, f"mlx5_{index}")
    if spoil.get("state") == "\udcff":
        port(adapters, "mlx5_7")
        (adapters / "mlx5_7" / "ports" / "1" / "state").write_bytes(b"\xff\xfe")
    else:
        port(adapters, "mlx5_7", **spoil)
    assert named(network.network_checks(H100))[name].status == status


def test_no_adapter(adapters):
    assert named(network.network_checks(LAPTOP))["network.ports"].status == "skip"
    assert named(network.network_checks(H100))["network.ports"].status == "fail"


def test_a_name_that_does_not_resolve(adapters, monkeypatch):
    def fail(name):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", fail)
    assert named(network.network_checks(LAPTOP))["network.name"].status == "warn"


def test_the_disk_is_measured_and_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "FILE_BYTES", 32 << 20)
    write, read = speed._disk(LAPTOP, tmp_path)
    assert "32 MiB and fsync" in write.found and float(read.found.split()[0]) > 0
    assert list(tmp_path.iterdir()) == []


MEASURES = """
import json, sys, time
for name in {names!r}:
    print(json.dumps({{"measure": name, "value": 1e6, "where": "here"}}), flush=True)
print("noise that is no JSON")
{then}
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Another program in the place of the measurements."""
    def put(names, then=""):
        (tmp_path / "stand_in.py").write_text(MEASURES.format(names=names, then=then))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(process, "MODULE", "stand_in")

    return put


def test_a_device_that_hangs_ends_the_measurements_and_keeps_the_figures_before(measured, tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    measured(["all_reduce"], "import subprocess; child = subprocess.Popen(['sleep', '600'])\n"
                             f"open({str(pid)!r}, 'w').write(str(child.pid)); time.sleep(600)")
    real = process.lines
    monkeypatch.setattr(speed, "lines", lambda *arguments, timeout: real(*arguments, timeout=3))
    checks = named(speed._torch(H100))
    assert checks["speed.all_reduce"].status == "ok"
    assert checks["speed.torch"].status == "fail" and "after speed.all_reduce: no answer within 3 s" in checks["speed.torch"].found
    for _ in range(50):
        if not psutil.pid_exists(int(pid.read_text())) or psutil.Process(int(pid.read_text())).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the rank that hung is still there")


def test_measurements_that_crash(measured):
    measured([], "sys.exit('CUDA error: an illegal memory access was encountered')")
    assert "illegal memory access" in named(speed._torch(H100))["speed.torch"].found


def test_a_figure_that_is_missing_is_a_warning(measured):
    measured(["all_reduce", "memory_rate", "gemm_bf16"])
    checks = named(speed._torch(H100))
    assert checks["speed.gemm_fp8"].status == "warn" and checks["speed.gemm_bf16"].status == "ok"


@pytest.mark.parametrize(("answer", "status"), [
    ({"measure": "gemm_bf16", "value": 700.0, "where": "cuda:0"}, "ok"),
    ({"measure": "gemm_bf16", "value": 300.0, "where": "slowest: cuda:3"}, "fail"),
    ({"measure": "gemm_bf16", "value": float("nan")}, "fail"),
    ({"measure": "gemm_bf16", "value": "fast"}, "fail"),
    ({"measure": "gemm_bf16", "failed": "cuda:2: CUDA out of memory"}, "fail"),
    ({"measure": "all_reduce", "skipped": "one GPU"}, "skip"),
])
def test_figures_against_their_floor(answer, status):
    assert speed._judged(H100, answer).status == status


def test_a_check_that_breaks_is_a_failure_with_the_reason():
    def broken():
        raise ZeroDivisionError("no")

    assert attempt("some.check", broken) == [Check("some.check", "fail", "this check itself failed: ZeroDivisionError: no",
                                                   mend="report it with the output of `stagecraft doctor --json`")]


def test_the_verdict_is_the_gravest_check():
    def of(*statuses):
        return verdict(Check(str(index), status, "") for index, status in enumerate(statuses))

    assert [of(), of("skip"), of("skip", "ok"), of("ok", "warn", "skip"), of("fail", "warn", "ok")] == ["ok", "ok", "ok", "warn", "fail"]


def test_bounds_hold_on_their_edge():
    least = Bound(least=2, otherwise="fail", reason="", source="")
    most = Bound(most=2, otherwise="fail", reason="", source="")
    assert [least.holds(1.9), least.holds(2), most.holds(2), most.holds(2.1)] == [False, True, True, False]


