"""Sick GPUs: each illness gives its verdict, and whatever nvidia-smi prints never gives a traceback or a clean bill of health."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stagecraft.doctor import gpu, smi
from stagecraft.doctor.examine import choose
from stagecraft.doctor.node import as_version, load, share
from stagecraft.doctor.verdict import verdict
from tests.doctor.conftest import HEALTHY, XID, Machine

H100 = load("h100")


def examine(node=H100):
    checks = {}
    for check in gpu.gpu_checks(node):
        assert check.name not in checks, "two checks of one name"
        checks[check.name] = check
    return checks


def test_a_healthy_node(machine, install):
    install(machine)
    checks = examine()
    assert {name: check.found for name, check in checks.items() if check.status not in ("ok", "skip")} == {}
    assert checks["gpu.count"].found == "8 x NVIDIA H100 80GB HBM3"
    assert checks["gpu.imex"].status == "skip"
    assert choose("auto")[0] == "h100"


def test_a_container_with_some_of_the_gpus(machine, install):
    for gpus, fabric in ((4, "Completed"), (1, "N/A")):
        machine.gpus, machine.rows, machine.links = machine.gpus[:gpus], machine.rows[:gpus], machine.links[:gpus]
        machine.fabric = [{**state, "State": fabric} for state in machine.fabric[:gpus]]
        install(machine)
        assert examine()["gpu.count"].status == "fail"
        assert verdict(examine(share(H100, gpus)).values()) == "ok"
    assert share(H100, 4).bounds["ports"].least == 4 and "ports" not in share(H100, 1).bounds


def test_gpus_that_no_profile_knows(machine, install):
    machine.gpus = [{**HEALTHY, "name": "NVIDIA GeForce RTX 4070", "ecc.mode.current": "[N/A]",
                     "ecc.errors.uncorrected.volatile.total": "[N/A]"}]
    machine.rows, machine.links, machine.fabric = machine.rows[:1], [[]], [dict.fromkeys(machine.fabric[0], "N/A")]
    install(machine)
    name, node = choose("auto")
    assert name == "laptop"
    checks = examine(node)
    assert verdict(checks.values()) == "ok"
    assert {name for name, check in checks.items() if check.status == "skip"} == {
        "gpu.ecc", "gpu.ecc_mode", "gpu.nvlink", "gpu.fabric", "gpu.imex"}


def _ill(change):
    machine = Machine()
    change(machine)
    return machine


ILLNESSES = {
    "a GPU is missing": (lambda m: (m.gpus.pop(), m.rows.pop(), m.links.pop(), m.fabric.pop()), "gpu.count", "fail", "7 x NVIDIA H100"),
    "a lost GPU": (lambda m: setattr(m, "message", "Unable to determine the device handle for GPU3: 0000:5D:00.0: Unknown Error")
                   or setattr(m, "code", 255), "gpu.query", "fail", "Unable to determine the device handle"),
    "uncorrectable ECC": (lambda m: m.gpus[3].update({"ecc.errors.uncorrected.volatile.total": "2"}), "gpu.ecc", "fail", "GPU 3"),
    "ECC off": (lambda m: m.gpus[1].update({"ecc.mode.current": "Disabled"}), "gpu.ecc_mode", "warn", "GPU 1"),
    "remapping pending": (lambda m: m.rows[2].update({"remapped_rows.pending": "1"}), "gpu.rows", "fail", "28:00.0"),
    "remapping failed": (lambda m: m.rows[2].update({"remapped_rows.failure": "Yes"}), "gpu.rows", "fail", "remapping failed"),
    "XID 79": (lambda m: setattr(m, "dmesg", m.dmesg + XID.format(bus="5d", code=79, text="GPU has fallen off the bus.")),
               "gpu.xid", "fail", "79 (GPU has fallen off the bus) at PCI:0000:5d:00"),
    "an application's XID": (lambda m: setattr(m, "dmesg", XID.format(bus="5d", code=31, text="MMU Fault")), "gpu.xid", "warn", "31"),
    "a link is down": (lambda m: m.links[5].__setitem__(7, "<inactive>"), "gpu.nvlink", "fail", "GPU 5 link 7"),
    "a slow link": (lambda m: m.links[5].__setitem__(7, "1.562 GB/s"), "gpu.nvlink_rate", "fail", "GPU 5 link 7"),
    "a link too few": (lambda m: m.links[5].pop(), "gpu.nvlink", "fail", "17 links of GPU 5"),
    "a GPU without links": (lambda m: m.links.pop(), "gpu.nvlink", "fail", "7 of 8 GPUs report links"),
    "no links": (lambda m: setattr(m, "links", [[] for _ in m.links]), "gpu.nvlink", "fail", "no link reported"),
    "fabric in progress": (lambda m: m.fabric[0].update(State="In Progress", Status="N/A"), "gpu.fabric", "fail", "In Progress"),
    "fabric failed": (lambda m: m.fabric[6].update(Status="Insufficient Resources"), "gpu.fabric", "fail", "Insufficient Resources"),
    "no fabric": (lambda m: [gpu.update(dict.fromkeys(gpu, "N/A")) for gpu in m.fabric], "gpu.fabric", "fail", "report no fabric"),
    "degraded fabric": (lambda m: m.health.update(Bandwidth="Degraded"), "gpu.fabric", "fail", "Bandwidth: Degraded"),
    "two cliques": (lambda m: m.fabric[6].update(CliqueId="4"), "gpu.fabric", "fail", "2 cliques"),
    "an old driver": (lambda m: [gpu.update(driver_version="470.82.01") for gpu in m.gpus], "gpu.driver", "fail", "470.82.01"),
    "hot": (lambda m: m.gpus[4].update({"temperature.gpu": "91"}), "gpu.temperature", "warn", "91"),
    "slowed down": (lambda m: m.gpus[4].update({"clocks_event_reasons.hw_thermal_slowdown": "Active"}),
                    "gpu.slowdown_heat", "warn", "GPU 4"),
    "clocks held down": (lambda m: m.gpus[4].update({"clocks.max.sm": "1410"}), "gpu.clock", "warn", "1410"),
    "another GPU": (lambda m: m.gpus[4].update(name="NVIDIA H100 PCIe"), "gpu.model", "fail", "H100 PCIe"),
}


@pytest.mark.parametrize("illness", ILLNESSES)
def test_an_illness(illness, install):
    change, name, status, said = ILLNESSES[illness]
    install(_ill(change))
    checks = examine()
    assert checks[name].status == status and said in checks[name].found, checks[name]
    assert checks[name].mend
    others = {other for other, check in checks.items() if check.status in ("warn", "fail")} - {name}
    assert others <= ({"gpu.rows", "gpu.nvlink", "gpu.fabric"} if illness == "a lost GPU" else set()), others


def test_an_older_nvidia_smi_that_lacks_a_field(machine, install):
    machine.gpus = [{key: value for key, value in row.items() if "power_brake" not in key} for row in machine.gpus]
    install(machine)
    checks = examine()
    assert checks["gpu.query"].status == "warn" and "power_brake" in checks["gpu.query"].found
    assert checks["gpu.slowdown_power"].status == "warn"
    assert checks["gpu.count"].status == checks["gpu.slowdown_heat"].status == "ok"


def test_a_nvidia_smi_that_hangs(machine, install, tmp_path, monkeypatch):
    install(machine)
    (tmp_path / "hang").touch()
    monkeypatch.setattr(smi, "_TIMEOUT", 0.3)
    checks = examine()
    assert "did not answer within 0.3 s" in checks["gpu.query"].found and checks["gpu.count"].status == "fail"


def test_without_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [check.status for check in gpu.gpu_checks(load("laptop"))] == ["skip"]
    assert [check.status for check in gpu.gpu_checks(H100)] == ["fail"]
    assert choose("auto")[0] == "laptop"


@pytest.mark.parametrize(("versions", "name", "status"), [
    ({"torch": "2.13.0+cpu", "cuda": None, "nccl": None, "devices": 0}, "gpu.cuda", "fail"),
    ({"torch": "2.1.0", "cuda": "11.8", "nccl": "2.18.1", "devices": 8}, "gpu.cuda", "fail"),
    ({"torch": "2.1.0", "cuda": "12.1", "nccl": "2.14.3", "devices": 8}, "gpu.nccl", "fail"),
    ({"torch": "2.13.0", "cuda": "13.0", "nccl": "2.28.9", "devices": 4}, "gpu.visible", "fail"),
])
def test_what_torch_was_built_with(machine, install, versions, name, status):
    install(machine, versions)
    assert examine()[name].status == status


def test_a_rack_needs_its_imex_channel(machine, install, tmp_path, monkeypatch):
    node = replace(load("gb300"), gpu_names=[HEALTHY["name"]])
    install(machine)
    monkeypatch.setattr(gpu, "IMEX", tmp_path / "channels")
    assert examine(node)["gpu.imex"].status == "fail"
    (tmp_path / "channels").mkdir()
    (tmp_path / "channels" / "channel0").touch()
    assert examine(node)["gpu.imex"].status == "ok"


# What sick drivers print in place of a value, and any other text that is no value.
GARBAGE = st.sampled_from(
    ["[Unknown Error]", "ERR!", "[GPU is lost]", "", "N/A", "[N/A]", "-", "nan", "1e9", "0x0", "\u0663", "9" * 400]) | st.text(
    st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp"), blacklist_characters=",|"), max_size=20).filter(
        lambda text: smi.number(text) is None and smi.truth(text) is None and as_version(text) is None)


def answers(machine, **texts):
    """`smi.ask` on a machine, with the whole answer to some questions replaced."""
    def ask(*arguments):
        kind, _, fields = arguments[0].partition("=")
        if kind in texts:
            return texts[kind], ""
        if kind == "--query-gpu":
            return machine.csv(machine.gpus, fields.split(",")), ""
        if kind == "--query-remapped-rows":
            return machine.csv(machine.rows, fields.split(",")), ""
        return (machine.nvlink() if kind == "nvlink" else machine.q()), ""

    return ask


@pytest.fixture(scope="module")
def asked():
    """Replaces `smi.ask` for the examples of a property, and everything that is not nvidia-smi."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smi, "is_installed", lambda: True)
        patch.setattr(gpu, "_torch", lambda node, gpus: [])
        patch.setattr(gpu, "_xid", lambda: gpu.Check("gpu.xid", "ok", ""))
        yield lambda ask: patch.setattr(smi, "ask", ask)


PROPERTY = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@PROPERTY
@given(field=st.sampled_from([name for name in HEALTHY if name != "index"]), which=st.integers(0, 7), text=GARBAGE)
def test_a_garbled_field_is_never_passed_over(asked, field, which, text):
    machine = Machine()
    machine.gpus[which][field] = text
    asked(answers(machine))
    checks = examine()
    grave = [check for check in checks.values() if check.status in ("warn", "fail")]
    assert grave and all("itself failed" not in check.found for check in grave), (field, text)


@PROPERTY
@given(kind=st.sampled_from(["--query-gpu", "--query-remapped-rows", "nvlink", "-q"]), text=st.text(max_size=300))
def test_any_text_instead_of_an_answer(asked, kind, text):
    asked(answers(Machine(), **{kind: text}))
    checks = examine()
    assert verdict(checks.values()) in ("warn", "fail")
    assert all("itself failed" not in check.found for check in checks.values())


@PROPERTY
@given(kind=st.sampled_from(["--query-gpu", "--query-remapped-rows", "nvlink", "-q"]), share=st.floats(0, 0.9999))
@example(kind="--query-gpu", share=0.98828125)  # Not Active, No
def test_an_answer_that_breaks_off(asked, kind, share):
    machine = Machine()
    whole = {"--query-gpu": machine.csv(machine.gpus, gpu.FIELDS), "--query-remapped-rows": machine.csv(machine.rows, gpu.REMAPPED),
             "nvlink": machine.nvlink(), "-q": machine.q()[:machine.q().rindex("        Health")]}[kind].rstrip()
    asked(answers(machine, **{kind: whole[:int(share * len(whole))]}))
    checks = examine()
    assert verdict(checks.values()) in ("warn", "fail")
    assert all("itself failed" not in check.found for check in checks.values())
