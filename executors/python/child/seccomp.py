"""A seccomp filter in classic BPF: no processes, no sockets but granted ones, nothing that outlives the process.

It refuses what is listed and allows the rest; calls newer than the tables are answered as unknown.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from executors.python.child import syscalls
from executors.python.child.kernel import PR_SET_DUMPABLE, PR_SET_PDEATHSIG, call

ARCHITECTURES = {"x86_64": (0xC000003E, syscalls.X86_64, 317), "aarch64": (0xC00000B7, syscalls.AARCH64, 277)}
SET_MODE_FILTER = 1
CLONE_THREAD = 0x10000
AF_INET, AF_INET6 = 2, 10
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

LOAD, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_BITS, RETURN = 0x20, 0x05, 0x15, 0x25, 0x45, 0x06
ALLOW, REFUSE, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16

Program = list[bytes]


def restrict(*, network: bool, threads: bool, metadata: bool, files: bool) -> None:
    """Loads the filter into this process, for good. `no_new_privs` must be set. Raises OSError.

    `network` grants IPv4 and IPv6 sockets, `threads` grants threads, `metadata` changes of modes and times, `files`
    opening files for writing and changing folders.
    """
    architecture, table, seccomp = ARCHITECTURES[os.uname().machine]
    program = _program(architecture, table, network=network, threads=threads, metadata=metadata, files=files)
    code = ctypes.create_string_buffer(b"".join(program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    call(seccomp, ctypes.c_uint(SET_MODE_FILTER), ctypes.c_uint(0), ctypes.c_char_p(header))


def _program(architecture: int, table: dict[str, int], *, network: bool, threads: bool, metadata: bool, files: bool) -> Program:
    refused = [*syscalls.PROCESSES, *syscalls.SIGNALS, *syscalls.LASTING, *syscalls.KERNEL]
    refused += [] if metadata else syscalls.METADATA
    refused += [] if files else syscalls.FILES
    program = [
        _op(LOAD, ARCHITECTURE_AT), _op(JUMP_EQUAL, architecture, 1, 0), _op(RETURN, KILL_PROCESS),
        _op(LOAD, NUMBER_AT), _op(JUMP_GREATER, syscalls.NEWEST, 0, 1), _error(errno.ENOSYS),
    ]  # fmt: skip
    program += _refuse(table["clone3"], errno.ENOSYS)  # glibc then takes clone, whose flags can be judged
    program += _refuse(table["openat2"], errno.ENOSYS)
    for name in refused:
        if name in table:
            program += _refuse(table[name], errno.EPERM)
    program += _unless_bits(table["clone"], 0, CLONE_THREAD) if threads else _refuse(table["clone"], errno.EPERM)
    program += _unless_among(table["socket"], 0, [AF_INET, AF_INET6] if network else [])
    program += _unless_among(table["tgkill"], 0, [os.getpid()])
    program += _unless_among(table["prlimit64"], 0, [0, os.getpid()])
    program += _if_among(table["prctl"], 0, [PR_SET_PDEATHSIG, PR_SET_DUMPABLE])
    if not files:
        program += _if_bits(table["openat"], 2, WRITING)
        program += _if_bits(table["open"], 1, WRITING) if "open" in table else []
    return [*program, _op(RETURN, ALLOW)]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _error(number: int) -> bytes:
    return _op(RETURN, REFUSE | number)


def _refuse(number: int, error: int) -> Program:
    return [_op(JUMP_EQUAL, number, 0, 1), _error(error)]


def _judged(number: int, argument: int, verdict: Program) -> Program:
    """Runs `verdict` over the low half of an argument of that call; falling through it allows."""
    body = [_op(LOAD, ARGUMENTS_AT + 8 * argument), *verdict, _op(RETURN, ALLOW)]
    return [_op(JUMP_EQUAL, number, 0, len(body)), *body]


def _unless_among(number: int, argument: int, values: list[int]) -> Program:
    jumps = [_op(JUMP_EQUAL, value, len(values) - position, 0) for position, value in enumerate(values)]
    return _judged(number, argument, [*jumps, _error(errno.EPERM)])


def _if_among(number: int, argument: int, values: list[int]) -> Program:
    return _judged(number, argument, [op for value in values for op in (_op(JUMP_EQUAL, value, 0, 1), _error(errno.EPERM))])


def _if_bits(number: int, argument: int, mask: int) -> Program:
    return _judged(number, argument, [_op(JUMP_BITS, mask, 0, 1), _error(errno.EACCES)])


def _unless_bits(number: int, argument: int, mask: int) -> Program:
    return _judged(number, argument, [_op(JUMP_BITS, mask, 1, 0), _error(errno.EPERM)])
