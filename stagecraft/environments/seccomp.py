"""The system calls that confined code is denied: a classic BPF filter, written by hand because a few lines need no library.

Namespaces and resource limits do not bound System V's shared memory and messages, nor files without a name, and what opens new
namespaces, traces or loads code into the kernel is more than a program under test may ask for. Nor does a network namespace hold a virtual
machine's sockets to its host, so that only the families of a program's usual ones can be opened. A denied call answers EPERM; `clone3`,
whose flags a filter cannot see, answers ENOSYS, on which the C library falls back to `clone`.
"""

from __future__ import annotations

import platform
import struct

_ARCH = 0xC000003E  # AUDIT_ARCH_X86_64
_DENIED = {
    "shmget": 29, "msgget": 68, "ptrace": 101, "personality": 135, "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169,
    "init_module": 175, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "name_to_handle_at": 303,
    "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "memfd_create": 319, "bpf": 321, "userfaultfd": 323,
    "io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "memfd_secret": 447,
}
_CLONE, _CLONE3, _NEW_NAMESPACES = 56, 435, 0x7E020000  # the flags CLONE_NEWNS to CLONE_NEWNET
_SOCKET, _SOCKETPAIR, _FAMILIES = 41, 53, (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_X32 = 0x40000000
_ALLOW, _KILL, _ERRNO, _EPERM, _ENOSYS, _EAFNOSUPPORT = 0x7FFF0000, 0x80000000, 0x00050000, 1, 38, 97
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets into seccomp_data


def available() -> bool:
    """The numbers above are those of Linux on x86-64."""
    return platform.system() == "Linux" and platform.machine() == "x86_64"


def program() -> bytes:
    """The filter as the kernel's array of `sock_filter` (see seccomp(2))."""
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _ARCH), (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for number in _DENIED.values():
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    open_socket = [(_LOAD, 0, 0, _FIRST_ARGUMENT)]
    for family in _FAMILIES:
        open_socket += [(_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
    open_socket += [(_RETURN, 0, 0, _ERRNO | _EAFNOSUPPORT)]
    code += [(_EQUAL, 1, 0, _SOCKET), (_EQUAL, 0, len(open_socket), _SOCKETPAIR), *open_socket]
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | _ENOSYS),
             (_EQUAL, 0, 3, _CLONE), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, _ERRNO | _EPERM),
             (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)
