"""A node with GPUs, as its programs report it: fake `nvidia-smi` and `dmesg` on PATH, answering in the recorded formats."""

import os
from dataclasses import dataclass, field

import pytest

# nvidia-smi picks the columns asked for, and refuses one that it does not know, as the real one does.
SMI = r"""#!/bin/sh
cd "{directory}"
[ -f hang ] && exec sleep 600
table() {{
  awk -F '|' -v asked="$2" '
    NR == 1 {{ for (i = 1; i <= NF; i++) column[$i] = i; n = split(asked, names, ",")
              for (i = 1; i <= n; i++) if (!(names[i] in column)) {{
                printf "Field \"%s\" is not a valid field to query.\n\n", names[i]; exit 2 }} next }}
    !/\|/ {{ print; next }}
    {{ line = $column[names[1]]; for (i = 2; i <= n; i++) line = line ", " $column[names[i]]; print line }}' "$1" || exit 2
}}
case "$1" in
  --query-gpu=*) table gpu "${{1#--query-gpu=}}" ;;
  --query-remapped-rows=*) table rows "${{1#--query-remapped-rows=}}" ;;
  nvlink) cat nvlink ;;
  -q) cat q ;;
  *) echo "Invalid combination of input arguments."; exit 2 ;;
esac
exit $(cat code)
"""

HEALTHY = {
    "index": "0", "name": "NVIDIA H100 80GB HBM3", "driver_version": "580.82.07", "clocks.max.sm": "1980", "temperature.gpu": "30",
    "ecc.mode.current": "Enabled", "ecc.errors.uncorrected.volatile.total": "0",
    "clocks_event_reasons.hw_thermal_slowdown": "Not Active", "clocks_event_reasons.hw_power_brake_slowdown": "Not Active",
}
ROWS = {"gpu_bus_id": "00000000:18:00.0", "remapped_rows.pending": "0", "remapped_rows.failure": "0"}
FABRIC = {"State": "Completed", "Status": "Success", "CliqueId": "0", "ClusterUUID": "00000000-0000-0000-0000-000000000000"}
HEALTH = {"Bandwidth": "N/A"}
XID = "[  812.3] NVRM: Xid (PCI:0000:{bus}:00): {code}, pid='<unknown>', name=<unknown>, {text}\n"


@dataclass
class Machine:
    """A node of eight healthy H100, until a test makes it ill."""

    gpus: list[dict[str, str]] = field(default_factory=lambda: [{**HEALTHY, "index": str(index)} for index in range(8)])
    rows: list[dict[str, str]] = field(default_factory=lambda: [{**ROWS, "gpu_bus_id": f"00000000:{index}8:00.0"} for index in range(8)])
    links: list[list[str]] = field(default_factory=lambda: [["26.562 GB/s"] * 18 for _ in range(8)])
    fabric: list[dict[str, str]] = field(default_factory=lambda: [dict(FABRIC) for _ in range(8)])
    health: dict[str, str] = field(default_factory=lambda: dict(HEALTH))
    message: str = ""
    dmesg: str = "[    0.000000] Linux version 6.8.0\n"
    code: int = 0

    def table(self, rows) -> str:
        lines = ["|".join(rows[0]), *("|".join(row.values()) for row in rows)] if rows else ["index|name"]
        return "\n".join([*lines, *([self.message] if self.message else [])]) + "\n"

    def csv(self, rows, fields) -> str:
        return "".join(", ".join(row[name] for name in fields) + "\n" for row in rows)

    def nvlink(self) -> str:
        return "".join(f"GPU {index}: {gpu['name']} (UUID: GPU-{index:08d}-0000-0000-0000-000000000000)\n"
                       + "".join(f"\t Link {link}: {rate}\n" for link, rate in enumerate(rates))
                       for index, (gpu, rates) in enumerate(zip(self.gpus, self.links)))

    def q(self) -> str:
        return "\n==============NVSMI LOG==============\n\nAttached GPUs                             : 8\n" + "".join(
            f"GPU 00000000:{index}8:00.0\n    Product Name                          : {gpu['name']}\n"
            "    Voltage\n        Graphics                          : 685.000 mV\n    Fabric\n"
            + "".join(f"        {key:<34}: {value}\n" for key, value in fabric.items()) + "        Health\n"
            + "".join(f"            {key:<30}: {value}\n" for key, value in self.health.items())
            + "    Processes                             : None\n    Capabilities\n        EGM                               : disabled\n\n"
            for index, (gpu, fabric) in enumerate(zip(self.gpus, self.fabric)))

    def write(self, directory):
        for name, text in (("gpu", self.table(self.gpus)), ("rows", self.table(self.rows)), ("nvlink", self.nvlink()), ("q", self.q()),
                           ("code", str(self.code)), ("log", self.dmesg)):
            (directory / name).write_text(text)


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a machine's programs first on PATH; torch answers as on that machine, which none of these tests has."""
    def put(machine, versions=None):
        programs = tmp_path / "bin"
        programs.mkdir(exist_ok=True)
        machine.write(tmp_path)
        for name, text in (("nvidia-smi", SMI.format(directory=tmp_path)), ("dmesg", f"#!/bin/sh\ncat '{tmp_path}/log'\n")):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        said = versions or {"torch": "2.13.0", "cuda": "13.0", "nccl": "2.28.9", "devices": len(machine.gpus)}
        monkeypatch.setattr("stagecraft.doctor.gpu.lines", lambda *_, **__: ([said], ""))
        return programs

    return put
