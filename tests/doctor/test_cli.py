"""`stagecraft doctor` as it is typed, on this machine and on one with sick GPUs."""

import json
import subprocess
import sys

import pytest

from stagecraft.doctor.node import load

COMMAND = [sys.executable, "-m", "stagecraft.cli.main", "doctor"]


def run(*arguments, cwd=None):
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The whole examination of this machine, measured."""
    done = run("--profile", "laptop", "--json", cwd=tmp_path_factory.mktemp("work"))
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_the_whole_examination_of_this_machine(whole):
    code, report = whole
    checks = {check["name"]: check for check in report["checks"]}
    assert len(checks) == len(report["checks"])
    for name in ("disk_write", "disk_read", "all_reduce", "memory_rate", "gemm_fp32", "gemm_bf16"):
        assert checks[f"speed.{name}"]["status"] in ("ok", "warn"), checks[f"speed.{name}"]
    assert checks["network.ports"]["found"]
    assert code == 0 and report["schema"] == 1 and report["profile"] == "laptop" and report["verdict"] in ("ok", "warn")
    assert all(set(check) == {"name", "status", "found", "expected", "mend"} for check in checks.values())
    assert all(check["mend"] for check in checks.values() if check["status"] in ("warn", "fail"))
    assert report["environment"]["versions"]["torch"]


def test_a_quick_look_measures_nothing(tmp_path):
    done = run("--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert not any("speed." in line for line in lines) and lines[-1].partition(":")[0] in ("ok", "warn")
    assert [line for line in lines if line.startswith("skip  gpu.driver")]


def test_a_machine_that_is_not_what_it_should_be(tmp_path):
    done = run("--quick", "--profile", "h100", cwd=tmp_path)
    assert done.returncode == 1
    assert "fail  gpu.driver" in done.stdout and done.stdout.splitlines()[-1].startswith("fail: ")


def test_a_sick_node(machine, install, tmp_path):
    machine.links[5][7] = "<inactive>"
    install(machine)
    done = run("--quick", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    sick = {check["name"]: check for check in report["checks"] if check["status"] == "fail"}
    assert done.returncode == 1 and report["profile"] == "h100" and report["verdict"] == "fail"
    assert sick["gpu.nvlink"]["found"] == "down: GPU 5 link 7"
    assert "is a CPU build" in sick["gpu.cuda"]["found"]  # the one truth about this machine that the fakes do not hide


@pytest.mark.parametrize("form", ["export", "file"])
@pytest.mark.parametrize("name", ["laptop", "h100", "gb300"])
def test_the_environment_as_a_shell_and_a_container_read_it(name, form):
    done = run("--env", form, "--profile", name)
    assert done.returncode == 0
    expected = {line.name: line.value for line in load(name).environment}
    if form == "export":
        shell = subprocess.run(["env", "-i", "sh", "-c", 'eval "$1"; env', "sh", done.stdout], capture_output=True, text=True, check=True)
        found = dict(line.split("=", 1) for line in shell.stdout.splitlines())
        assert expected.items() <= found.items()
    else:
        lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
        assert dict(line.split("=", 1) for line in lines) == expected
    assert all(f"# {line.reason} ({line.source})" in done.stdout for line in load(name).environment)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--profile", "tpu"], "error: --profile: no such kind of node: tpu - choose auto, b200, gb300, h100, h200, laptop"),
    (["--profile", "../laptop"], "error: --profile: no such kind of node"),
    (["--profile", "gb300", "--gpus", "8"], "error: --gpus: cannot expect 8 GPUs of four GB300 of an NVL72 rack - give 1 to 4"),
    (["--profile", "laptop", "--gpus", "1"], "error: --gpus: cannot expect 1 GPUs of a machine that runs on its CPU - it has none"),
    (["--work", "nowhere"], "error: --work nowhere: no such directory"),
])
def test_a_mistake_in_the_call_is_one_line(tmp_path, arguments, said):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1


def test_two_outputs_at_once():
    assert run("--json", "--env").returncode == 2
