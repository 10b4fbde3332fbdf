"""The network: this host's own name, the ports of InfiniBand or RoCE, and the memory RDMA may pin."""

from __future__ import annotations

import re
import resource
import socket
from pathlib import Path

from stagecraft.doctor.node import Node
from stagecraft.doctor.verdict import Check, attempt

INFINIBAND = Path("/sys/class/infiniband")


def network_checks(node: Node) -> list[Check]:
    """What the kernel says of the network; nothing is sent."""
    return [
        *attempt("network.name", lambda: [_name()]),
        *attempt("network.ports", lambda: _ports(node)),
    ]


def _name() -> Check:
    """torch.distributed finds its own address by this host's name."""
    name = socket.gethostname()
    try:
        return Check("network.name", "ok", f"{name} is {socket.gethostbyname(name)}")
    except OSError as error:
        return Check("network.name", "warn", f"{name} has no address ({error})", "a name that resolves",
                     "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME")


def _ports(node: Node) -> list[Check]:
    """Ports of /sys/class/infiniband: RoCE adapters are there too, with the link layer Ethernet."""
    wanted = "ports" in node.bounds
    ports = sorted(INFINIBAND.glob("*/ports/*")) if INFINIBAND.is_dir() else []
    if not ports:
        found = "no InfiniBand or RoCE adapter"
        if not wanted:
            return [Check("network.ports", "skip", found)]
        return [node.judge("network.ports", "ports", 0, "give the pod its RDMA devices, and load the adapters' driver", found)]
    active, other = {}, []
    for port in ports:
        name = f"{port.parent.parent.name}/{port.name}"
        state, rate = _read(port / "state"), re.match(r"(\d+(?:\.\d+)?) Gb/sec", _read(port / "rate"), re.ASCII)
        if state == "4: ACTIVE" and rate:
            active[name] = (float(rate[1]), _read(port / "link_layer"))
        else:
            other.append(f"{name} {state or 'unreadable'}")
    layers = sorted({"RoCE" if layer == "Ethernet" else layer or "unknown link layer" for _, layer in active.values()})
    shown = f"{len(active)} active ({', '.join(layers)})" if active else "none active"
    if other:
        shown += f"; not active: {', '.join(other[:8])}"
    quickest = sorted((rate for rate, _ in active.values()), reverse=True)
    checks = [node.judge("network.ports", "ports", len(active), "look at the cables, the switch and the subnet manager (ibstat)", shown)]
    if quickest:
        # Adapters for storage and management are slower; the slowest of as many as are expected counts.
        bound = node.bounds.get("ports")
        counted = quickest[:int(bound.least)] if bound and bound.least else quickest
        checks.append(node.judge("network.rate", "port_rate", counted[-1],
                                 "a link came up slower than it can: reseat or replace the cable"))
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        checks.append(Check("network.locked_memory", "ok", "no limit"))
    else:
        checks.append(node.judge("network.locked_memory", "locked_memory", limit / 1e9, "ulimit -l unlimited: RDMA pins its buffers",
                                 f"{limit / 1e9:.3g} GB may be pinned"))
    return checks


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
