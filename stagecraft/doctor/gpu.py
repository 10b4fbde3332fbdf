"""The GPUs: driver, count, clocks, ECC, row remapping, XID, NVLink, fabric, and what torch was built with."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from stagecraft.doctor import smi
from stagecraft.doctor.node import Node
from stagecraft.doctor.process import lines
from stagecraft.doctor.verdict import Check, attempt

FIELDS = (
    "index", "name", "driver_version", "clocks.max.sm", "temperature.gpu", "ecc.mode.current",
    "ecc.errors.uncorrected.volatile.total", "clocks_event_reasons.hw_thermal_slowdown", "clocks_event_reasons.hw_power_brake_slowdown",
)
REMAPPED = ("gpu_bus_id", "remapped_rows.pending", "remapped_rows.failure")
DEVICE = Path("/dev/nvidiactl")
IMEX = Path("/dev/nvidia-caps-imex-channels")
RESET = "drain the node, reset the GPU (nvidia-smi --gpu-reset) or reboot; if it returns, have the GPU replaced"
FABRIC_MANAGER = "start nvidia-fabricmanager (nvidia-imex too where NVLink spans nodes), of the driver's version, then reset the GPUs"

# NVIDIA, "XID Errors" (docs.nvidia.com/deploy/xid-errors): after these the GPU or its memory cannot be trusted until it is reset.
# Every other one is a warning: most are an application's own fault (13, 31, 43, 45).
FATAL_XIDS = {
    46: "GPU stopped processing", 48: "double-bit ECC error", 62: "internal micro-controller halt", 64: "row remapping failed",
    74: "NVLink error", 79: "GPU has fallen off the bus", 95: "uncontained memory error", 119: "GSP timeout", 120: "GSP error",
    140: "unrecovered ECC error",
}


def gpu_checks(node: Node) -> list[Check]:
    """Everything that is read and not measured. Nothing but a reason where the node has no GPU."""
    if not smi.is_installed():
        if node.gpu_names:
            return [Check("gpu.driver", "fail", "no nvidia-smi on PATH", "the NVIDIA driver",
                          "install the driver, or run the container with the NVIDIA runtime")]
        if DEVICE.exists():
            return [Check("gpu.driver", "warn", f"{DEVICE} is there, but no nvidia-smi on PATH", "both, or none",
                          "give the container the driver's tools (NVIDIA_DRIVER_CAPABILITIES=compute,utility)")]
        return [Check("gpu.driver", "skip", "no nvidia-smi on PATH: no NVIDIA GPU here")]
    table = smi.query("gpu", FIELDS)
    gpus = len(table.rows)
    return [
        *attempt("gpu.query", lambda: _answer(table, node)),
        *attempt("gpu.health", lambda: _health(table.rows, node)),
        *attempt("gpu.rows", lambda: [_remapped(node, gpus)]),
        *attempt("gpu.nvlink", lambda: _nvlink(node, gpus)),
        *attempt("gpu.fabric", lambda: [_fabric(node, gpus)]),
        *attempt("gpu.imex", lambda: [_imex(node)]),
        *attempt("gpu.xid", lambda: [_xid()]),
        *attempt("gpu.cuda", lambda: _torch(node, gpus)),
    ]


def names() -> set[str]:
    """Product names of the GPUs; empty without nvidia-smi or without an answer."""
    if not smi.is_installed():
        return set()
    return {row["name"] for row in smi.query("gpu", ("index", "name")).rows}


def _answer(table: smi.Table, node: Node) -> list[Check]:
    """Whether nvidia-smi answered in full, and for as many GPUs as there should be."""
    checks = []
    trouble = [*([table.problem] if table.problem else []), *table.strays[:3]]
    if trouble:
        checks.append(Check("gpu.query", "fail", "; ".join(trouble), "a full answer of nvidia-smi", RESET))
    elif table.refused:
        checks.append(Check("gpu.query", "warn", f"nvidia-smi knows no {', '.join(table.refused)}", "", "use a newer driver"))
    else:
        checks.append(Check("gpu.query", "ok", "nvidia-smi answers"))
    if not table.rows:
        return [*checks, Check("gpu.count", "fail", "no GPU answers", "", RESET)]
    kinds = sorted({row.get("name", "") for row in table.rows})
    shown = f"{len(table.rows)} x {', '.join(kinds)}"
    checks.append(node.judge("gpu.count", "gpus", len(table.rows), "a GPU is missing: look for XID 79 in dmesg, then reboot", shown))
    if node.gpu_names and set(kinds) - set(node.gpu_names):
        checks.append(Check("gpu.model", "fail", ", ".join(kinds), " or ".join(node.gpu_names), "choose the profile of these GPUs"))
    drivers = sorted({row.get("driver_version", "") for row in table.rows})
    checks.append(node.judge_version("gpu.driver", "driver", ", ".join(drivers), "update the driver"))
    return checks


def _health(rows: list[dict[str, str]], node: Node) -> list[Check]:
    if not rows:
        return []
    checks = [
        _each(rows, "clocks.max.sm", "gpu.clock", node, smi.number,
              lambda clocks: node.judge("gpu.clock", "sm_clock", min(clocks), "lift the clock limit: nvidia-smi --reset-gpu-clocks")),
        _each(rows, "temperature.gpu", "gpu.temperature", node, smi.number,
              lambda degrees: node.judge("gpu.temperature", "temperature", max(degrees), "look after the cooling")),
    ]
    for field, what in (("clocks_event_reasons.hw_thermal_slowdown", "heat"), ("clocks_event_reasons.hw_power_brake_slowdown", "power")):
        checks.append(_flags(rows, field, f"gpu.slowdown_{what}", node, "warn", f"slowed down for want of {_WANT[what]}",
                             "not slowed down", f"look after the {_WANT[what]}"))
    checks.append(_flags(rows, "ecc.mode.current", "gpu.ecc_mode", node, "warn", "ECC is off", "ECC is on",
                         "nvidia-smi --ecc-config=1, then reboot", bad=False))
    checks.append(_flags(rows, "ecc.errors.uncorrected.volatile.total", "gpu.ecc", node, "fail", "uncorrectable memory errors",
                         "no uncorrectable memory error since the driver was loaded", RESET))
    return checks


_WANT = {"heat": "cooling", "power": "power"}


def _each(rows: list[dict[str, str]], field: str, check: str, node: Node, read: Callable[[str], float | None],
          judge: Callable[[list[float]], Check]) -> Check:
    """Read one field of every GPU, then judge; what cannot be read is never passed over."""
    if missing := _missing(rows, field, check, node, read):
        return missing
    return judge([value for row in rows if (value := read(row[field])) is not None])


def _flags(rows: list[dict[str, str]], field: str, check: str, node: Node, status: str, wrong: str, right: str, mend: str, *,
           bad: bool = True) -> Check:
    """A field that is true or false for every GPU; `bad` is the value that is wrong."""
    def judge(flags: list[float]) -> Check:
        sick = [_label(row) for row, flag in zip(rows, flags) if flag == bad]
        return Check(check, status, f"{wrong}: {', '.join(sick)}", right, mend) if sick else Check(check, "ok", right)

    return _each(rows, field, check, node, smi.truth, judge)


def _missing(rows: list[dict[str, str]], field: str, check: str, node: Node, read: Callable[[str], float | None]) -> Check | None:
    """The verdict where a GPU gives no value for a field."""
    absent = [_label(row) for row in rows if smi.is_absent(row.get(field, ""))]
    garbled = [f"{_label(row)} says {row[field][:60]!r}" for row in rows
               if not smi.is_absent(row.get(field, "")) and read(row[field]) is None]
    if garbled:
        return Check(check, "warn", f"cannot read {field}: {', '.join(garbled)}", "", RESET)
    if len(absent) == len(rows) and not node.gpu_names:
        return Check(check, "skip", f"these GPUs do not report {field}")
    if absent:
        return Check(check, "warn", f"no {field} from {', '.join(absent)}", "", "use a newer driver, or look at the GPU")
    return None


def _label(row: dict[str, str]) -> str:
    return f"GPU {row.get('index') or row.get('gpu_bus_id', '?')}"


def _remapped(node: Node, gpus: int) -> Check:
    """Rows of memory that wait for a reset to be replaced, or could not be."""
    table = smi.query("remapped-rows", REMAPPED)
    if table.problem or table.strays or table.refused or len(table.rows) < max(gpus, 1):
        why = table.problem or "; ".join(table.strays[:2]) or ", ".join(table.refused) or f"an answer for {len(table.rows)} of {gpus} GPUs"
        return Check("gpu.rows", "warn", f"remapped rows unknown: {why}", "", "use a newer driver, or look at the GPU")
    checks = [
        _flags(table.rows, "remapped_rows.failure", "gpu.rows", node, "fail", "row remapping failed", "no row remapping failed",
               "have the GPU replaced: it has no spare rows left"),
        _flags(table.rows, "remapped_rows.pending", "gpu.rows", node, "fail", "row remapping waits for a reset", "no row waits", RESET),
    ]
    return next((check for check in checks if check.status != "ok"),
                Check("gpu.rows", "ok", "no row remapping failed or waits for a reset"))


def _nvlink(node: Node, gpus: int) -> list[Check]:
    """Links per GPU and the rate of the slowest."""
    expected = "nvlinks" in node.bounds
    text, problem = smi.ask("nvlink", "-s")
    found = smi.links(text)
    if problem or not any(found.values()):
        if not expected:
            return [Check("gpu.nvlink", "skip", problem or "these GPUs have no NVLink")]
        return [Check("gpu.nvlink", "fail", problem or "no link reported", "NVLink", FABRIC_MANAGER)]
    down = [f"GPU {gpu} link {link}" for gpu, rates in found.items() for link, rate in rates.items() if rate is None]
    if down:
        more = f" and {len(down) - 8} more" if len(down) > 8 else ""
        return [Check("gpu.nvlink", "fail", f"down: {', '.join(down[:8])}{more}", "every link up", RESET)]
    fewest = min(found, key=lambda gpu: len(found[gpu]))
    if len(found) < gpus or not found[fewest]:
        linked = sum(bool(rates) for rates in found.values())
        return [Check("gpu.nvlink", "fail", f"{linked} of {gpus} GPUs report links", "all", FABRIC_MANAGER)]
    slowest = min((rate, gpu, link) for gpu, rates in found.items() for link, rate in rates.items() if rate is not None)
    return [
        node.judge("gpu.nvlink", "nvlinks", len(found[fewest]), FABRIC_MANAGER, f"{len(found[fewest])} links of GPU {fewest}"),
        node.judge("gpu.nvlink_rate", "nvlink_rate", slowest[0], RESET,
                   f"{slowest[0]:g} GB/s, the slowest: GPU {slowest[1]} link {slowest[2]}"),
    ]


def _fabric(node: Node, gpus: int) -> Check:
    """Whether the GPUs have joined the NVSwitch fabric; until then CUDA does not start."""
    text, problem = smi.ask("-q")
    sections = smi.fabric(text)
    states = [gpu for gpu in sections if not smi.is_absent(gpu.get("State", ""))]
    if problem or not states:
        if not node.fabric:
            return Check("gpu.fabric", "skip", problem or "these GPUs belong to no NVSwitch fabric")
        return Check("gpu.fabric", "fail", problem or "the GPUs report no fabric", "State Completed, Status Success", FABRIC_MANAGER)
    if len(states) < max(gpus, len(sections)):
        return Check("gpu.fabric", "fail", f"{len(states)} of {max(gpus, len(sections))} GPUs report a fabric", "all", FABRIC_MANAGER)
    wrong = sorted({f"State {gpu.get('State')}, Status {gpu.get('Status')}" for gpu in states
                    if (gpu.get("State"), gpu.get("Status")) != ("Completed", "Success")})
    if wrong:
        return Check("gpu.fabric", "fail", "; ".join(wrong), "State Completed, Status Success", FABRIC_MANAGER)
    sick = sorted({f"{key}: {gpu[key]}" for gpu in states for key, good in _HEALTHY.items()
                   if not smi.is_absent(gpu.get(key, "")) and gpu[key].lower() not in good})
    if sick:
        return Check("gpu.fabric", "fail", "; ".join(sick), "a healthy fabric", RESET)
    cliques = {(gpu.get("ClusterUUID"), gpu.get("CliqueId")) for gpu in states}
    if len(cliques) > 1:
        return Check("gpu.fabric", "fail", f"the GPUs are in {len(cliques)} cliques", "one clique",
                     "look at the partitions of the NVLink domain")
    return Check("gpu.fabric", "ok", f"{len(states)} GPUs registered, clique {states[0].get('CliqueId', '?')}")


# Keys of the fabric's health, and what a healthy one says.
_HEALTHY = {"Bandwidth": {"full"}, "Route Unhealthy": {"false"}, "Route Recovery in progress": {"false"},
            "Access Timeout Recovery": {"false"}}


def _imex(node: Node) -> Check:
    """The channel through which GPUs of other nodes map this one's memory."""
    if not node.imex:
        return Check("gpu.imex", "skip", "NVLink does not reach other nodes")
    if IMEX.is_dir() and any(IMEX.iterdir()):
        return Check("gpu.imex", "ok", f"a channel in {IMEX}")
    return Check("gpu.imex", "fail", f"no channel in {IMEX}", "an IMEX channel",
                 "run nvidia-imex on every node of the domain; on Kubernetes give the pod a ComputeDomain")


def _xid() -> Check:
    """Errors that the driver has written to the kernel's log since the node booted."""
    try:
        done = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("gpu.xid", "skip", f"dmesg cannot be run: {error}")
    if done.returncode:
        return Check("gpu.xid", "skip", f"the kernel's log is not readable ({done.stderr.strip()[:80]}): give the container CAP_SYSLOG")
    found = sorted({(int(code), bus) for bus, code in _XID.findall(done.stdout)})
    if not found:
        return Check("gpu.xid", "ok", "no XID since boot")
    shown = ", ".join(f"{code} ({FATAL_XIDS.get(code, 'see the XID catalogue')}) at {bus}" for code, bus in found[:6])
    fatal = any(code in FATAL_XIDS for code, _ in found)
    return Check("gpu.xid", "fail" if fatal else "warn", shown, "no XID since boot",
                 RESET if fatal else "look for the application at fault")


_XID = re.compile(r"NVRM: Xid \(([^)\n]{0,80})\):? (\d{1,4})\b", re.ASCII)


def _torch(node: Node, gpus: int) -> list[Check]:
    """What torch was built with, asked in a process of its own."""
    answers, problem = lines("versions", timeout=120)
    if not answers:
        return [Check("gpu.cuda", "fail", f"torch cannot be asked: {problem}", "a CUDA build of torch", "install the image's environment")]
    said = answers[0]
    if not said.get("cuda"):
        return [Check("gpu.cuda", "fail" if node.gpu_names else "warn", f"torch {said.get('torch')} is a CPU build",
                      "a CUDA build of torch", "use the image of this GPU generation")]
    checks = [node.judge_version("gpu.cuda", "cuda", str(said["cuda"]), "use the image of this GPU generation")]
    if said.get("nccl"):
        checks.append(node.judge_version("gpu.nccl", "nccl", str(said["nccl"]), "use an image with a newer NCCL"))
    if said.get("devices") != gpus:
        checks.append(Check("gpu.visible", "fail", f"torch sees {said.get('devices')} GPUs", f"{gpus}, as nvidia-smi",
                            "look at CUDA_VISIBLE_DEVICES, and whether the driver is new enough for this CUDA"))
    return checks
