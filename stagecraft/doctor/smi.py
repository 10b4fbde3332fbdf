"""nvidia-smi asked and its answers taken apart, whatever they look like: a sick GPU garbles them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field

PROGRAM = "nvidia-smi"
_TIMEOUT = 60  # seconds: with a lost GPU it takes long, or never ends

# nvidia-smi(1), "RETURN VALUE".
RETURN_CODES = {
    2: "an argument is invalid", 3: "the operation is not available on this device", 4: "no permission", 6: "no such object",
    8: "a power cable is missing", 9: "the driver is not loaded", 10: "an interrupt problem of a GPU",
    12: "the NVML library was not found", 13: "the NVML library lacks the function", 14: "the infoROM is corrupted",
    15: "a GPU has fallen off the bus or is inaccessible", 255: "an internal driver error",
}
_ABSENT = {"", "n/a", "[n/a]", "[not supported]", "not supported", "[not available]"}


@dataclass(frozen=True)
class Table:
    """An answer in CSV.

    Args:
        rows: per GPU the fields asked for, as text.
        strays: lines that are no row: messages, or rows with too few or too many cells.
        refused: fields that this nvidia-smi does not know.
        problem: why there is no full answer; empty if there is one.
    """

    rows: list[dict[str, str]]
    strays: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    problem: str = ""


def is_installed() -> bool:
    return shutil.which(PROGRAM) is not None


def ask(*arguments: str) -> tuple[str, str]:
    """Run nvidia-smi.

    Returns:
        what it printed on standard output, and what went wrong (empty: nothing).
    """
    try:
        done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return "", f"nvidia-smi did not answer within {_TIMEOUT} s"
    except OSError as error:
        return "", f"nvidia-smi cannot be run: {error.strerror}"
    if done.returncode:
        meaning = RETURN_CODES.get(done.returncode)
        said = next((line.strip() for line in [*done.stderr.splitlines(), *done.stdout.splitlines()] if line.strip()), "")
        return done.stdout, ": ".join(filter(None, [f"nvidia-smi ended with code {done.returncode}", meaning, said[:200]]))
    return done.stdout, ""


def query(of: str, fields: tuple[str, ...]) -> Table:
    """Ask `nvidia-smi --query-<of>=fields`; fields that it does not know are left out, and named in the answer."""
    wanted, refused = list(fields), []
    while wanted:
        text, problem = ask(f"--query-{of}={','.join(wanted)}", "--format=csv,noheader,nounits")
        unknown = re.search(r'Field "([^"]+)" is not a valid field', f"{text} {problem}")
        if not unknown or unknown[1] not in wanted:
            return _table(text, wanted, refused, problem)
        wanted.remove(unknown[1])
        refused.append(unknown[1])
    return Table([], [], refused, "nvidia-smi knows none of the fields asked for")


def _table(text: str, wanted: list[str], refused: list[str], problem: str) -> Table:
    rows, strays = [], []
    for line in filter(str.strip, text.splitlines()):
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(wanted):
            rows.append(dict(zip(wanted, cells)))
        else:
            strays.append(line.strip())
    if text and not text.endswith("\n"):  # "Not Active" may have come as "No", which is a value too
        problem = problem or "the answer breaks off"
    return Table(rows, strays, refused, problem)


def is_absent(text: str) -> bool:
    """Whether the GPU does not have what was asked for, as opposed to an answer that cannot be read."""
    return text.strip().lower() in _ABSENT


def number(text: str) -> float | None:
    """A decimal number, or None."""
    match = re.fullmatch(r"\s*([+-]?\d{1,15}(?:\.\d{1,15})?)\s*", text, re.ASCII)
    return float(match[1]) if match else None


def truth(text: str) -> bool | None:
    """Yes / no, active / not active, a count / 0; None for anything else."""
    word = text.strip().lower()
    if word in ("yes", "active", "enabled"):
        return True
    if word in ("no", "not active", "disabled"):
        return False
    value = number(word)
    return None if value is None else value != 0


def links(text: str) -> dict[str, dict[int, float | None]]:
    """`nvidia-smi nvlink -s`: per GPU the rate of every link in GB/s, None for one that is down or unreadable."""
    found: dict[str, dict[int, float | None]] = {}
    current = None
    for line in text.splitlines():
        if gpu := re.match(r"\s*GPU (\d+):", line, re.ASCII):
            current = found.setdefault(gpu[1], {})
        elif current is not None and (link := re.match(r"\s*Link (\d+):\s*(.*)", line, re.ASCII)):
            rate = re.fullmatch(r"(\d+(?:\.\d+)?) GB/s\s*", link[2], re.ASCII)
            current[int(link[1])] = float(rate[1]) if rate else None
    return found


def fabric(text: str) -> list[dict[str, str]]:
    """`nvidia-smi -q`: per GPU the keys of its section Fabric, those of its Health among them; empty for a GPU without the section."""
    found: list[dict[str, str]] = []
    inside = None
    for line in text.splitlines():
        if re.match(r"GPU [0-9A-Fa-f:.]+\s*$", line):
            found.append({})
            inside = None
            continue
        indent, (key, colon, value) = len(line) - len(line.lstrip()), line.partition(":")
        if key.strip() == "Fabric" and not colon:
            inside = indent
        elif inside is not None and key.strip() and indent <= inside:
            inside = None
        elif inside is not None and colon and found:
            found[-1][key.strip()] = value.strip()
    return found
