"""The system calls that a sandboxed tool may make, compiled by libseccomp into a seccomp program.

Every other call fails with ENOSYS, so that libraries fall back as they do on an older kernel.
"""

# ruff: noqa: SIM905  # lists of words read best as text

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import socket
from collections.abc import Iterable

LIBRARY, PACKAGE = "libseccomp.so.2", "libseccomp2"
ALLOW, REFUSE, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
FOREIGN_TABLE = 2  # SCMP_FLTATR_ACT_BADARCH: calls by the 32-bit and x32 tables
MASKED_EQUAL = 7
LOW_HALF = 0xFFFFFFFF  # the kernel reads an `int` from the lower half of the register

# Memory, time, waiting, and the process's own identity and limits.
PROCESS = (
    "brk munmap mremap mprotect madvise msync membarrier exit exit_group restart_syscall futex "
    "futex_waitv set_robust_list set_tid_address rseq rt_sigaction rt_sigprocmask rt_sigreturn "
    "rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack alarm pause setitimer getitimer "
    "nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getrusage "
    "getrlimit setrlimit sysinfo uname getrandom getcpu getpid gettid getppid getpgrp getpgid "
    "getsid getuid geteuid getgid getegid getresuid getresgid getgroups getpriority sched_yield "
    "sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max "
    "sched_get_priority_min"
).split()
# Descriptors, pipes and reading files. Landlock or the mount namespace decides which files.
DESCRIPTORS = (
    "read pread64 readv preadv preadv2 write pwrite64 writev pwritev pwritev2 lseek close dup "
    "dup2 dup3 pipe pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl "
    "epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 timerfd_create timerfd_settime "
    "timerfd_gettime fstat stat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 "
    "readlink readlinkat getdents getdents64 getcwd chdir fchdir umask fsync fdatasync ftruncate "
    "fadvise64 copy_file_range getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr"
).split()
FILES = (
    "creat truncate unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir link linkat "
    "symlink symlinkat"
).split()
METADATA = (
    "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat futimesat"
).split()
NETWORK = (
    "bind listen accept accept4 connect sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg "
    "shutdown getsockname getpeername getsockopt"
).split()
# For the socket pair that wakes asyncio's loop. Nothing can be sent to an address.
PAIR = "recvfrom shutdown getsockname getpeername".split()
# Refused with EPERM instead of ENOSYS: a tool's author reads "Operation not permitted".
NAMED = "fork vfork execve execveat kill tkill tgkill socket setxattr lsetxattr fsetxattr".split()
# The other commands can signal other processes (F_SETOWN, F_SETSIG, F_NOTIFY), delay whoever opens
# a file (leases) or enlarge the kernel's buffers.
FCNTL = (
    fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL,
    fcntl.F_SETFL, fcntl.F_GETLK, fcntl.F_GETPIPE_SZ,
)  # fmt: skip
# Locks are granted without being taken. No other process uses the scratch files; a real lock on a
# file of its package would block other processes, and the kernel does not bound the number of
# locks.
LOCKS = (fcntl.F_SETLK, fcntl.F_SETLKW)
# TCGETS and TIOCGWINSZ (is it a terminal?), FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_SET_NAME, PR_GET_NAME, PR_SET_VMA (the allocator names its areas).
PRCTL = (15, 16, 0x53564D41)
# CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID: what a
# thread library asks for. All of these flags are required: a thread with its own descriptor table
# could hide files.
THREAD = 0x3D0F00
CLONE_DETACHED = 0x400000  # without effect; musl sets it
CLOSE_RANGE_CLOEXEC = 4  # CLOSE_RANGE_UNSHARE would give the thread its own descriptor table
AF_UNIX, AF_INET, AF_INET6, STREAM, DATAGRAM, KIND = 1, 2, 10, 1, 2, 0xF
TCP, UDP = 6, 17
# By level. Not in the list: options that enlarge buffers (SO_SNDBUF, SO_RCVBUF, SO_RCVLOWAT), share
# another process's port (SO_REUSEPORT), load programs or change protocols.
SOCKET_OPTIONS = {
    socket.SOL_SOCKET: (
        socket.SO_REUSEADDR, socket.SO_KEEPALIVE, socket.SO_BROADCAST, socket.SO_LINGER,
        socket.SO_RCVTIMEO, socket.SO_SNDTIMEO,
    ),
    socket.IPPROTO_TCP: (
        socket.TCP_NODELAY, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT,
        socket.TCP_USER_TIMEOUT,
    ),
    socket.IPPROTO_IP: (11,),  # IP_RECVERR: glibc's resolver sets it
    socket.IPPROTO_IPV6: (socket.IPV6_V6ONLY, 25),  # IPV6_RECVERR: the same
}  # fmt: skip
OUT_OF_BAND = 1  # MSG_OOB: rarely used kernel code with a history of flaws
TMPFILE = 0o20000000
WRITING = (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC)
MAP_SHARED, MAP_PRIVATE, MAP_TYPE, MAP_ANONYMOUS, MAP_HUGETLB = 1, 2, 0xF, 0x20, 0x40000

Condition = tuple[int, int, int]  # argument, mask, value


class FilterUnavailable(OSError):
    """libseccomp is missing or failed; the message says what to install."""


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


@functools.cache
def compiled(*, network: bool, threads: bool, metadata: bool, files: bool) -> bytes:
    """Returns the program in classic BPF for this machine's architecture.

    `network` grants IPv4 and IPv6 sockets, `threads` grants threads, `metadata` changes of modes
    and times, `files` opening files for writing and changing folders. Raises FilterUnavailable.
    """
    rules = _Rules()
    try:
        rules.allow(PROCESS + DESCRIPTORS)
        _descriptors(rules)
        _memory(rules, files=files)
        _opening(rules, files=files)
        _sockets(rules, network=network)
        rules.allow(FILES) if files else rules.refuse(FILES)
        rules.allow(METADATA) if metadata else rules.refuse(METADATA)
        rules.when("clone", (0, LOW_HALF ^ CLONE_DETACHED, THREAD)) if threads else rules.refuse(
            ["clone"]
        )
        rules.refuse(name for name in NAMED if not (network and name == "socket"))
        # Where the file system cannot preallocate, libraries write zeros instead.
        rules.refuse(["fallocate"], errno.EOPNOTSUPP)
        return rules.export()
    finally:
        rules.release()


def _descriptors(rules: _Rules) -> None:
    for name, argument, values in (("fcntl", 1, FCNTL), ("ioctl", 1, IOCTL), ("prctl", 0, PRCTL)):
        for value in values:
            rules.when(name, (argument, LOW_HALF, value))
    for command in LOCKS:
        rules.when("fcntl", (1, LOW_HALF, command), error=0)
    rules.refuse(["flock"], 0)
    rules.when("close_range", (2, LOW_HALF ^ CLOSE_RANGE_CLOEXEC, 0))
    rules.when("prlimit64", (0, LOW_HALF, 0))  # its own


def _memory(rules: _Rules, *, files: bool) -> None:
    """Refuses anonymous shared mappings: one mapped page keeps all of it allocated."""
    rules.when("mmap", (3, MAP_TYPE | MAP_HUGETLB, MAP_PRIVATE))
    if files:
        rules.when("mmap", (3, MAP_TYPE | MAP_ANONYMOUS | MAP_HUGETLB, MAP_SHARED))


def _opening(rules: _Rules, *, files: bool) -> None:
    """Refuses O_TMPFILE, and opening for writing where `files` is not granted."""
    refused = () if files else WRITING
    for name, argument in (("open", 1), ("openat", 2)):
        rules.when(name, (argument, TMPFILE | sum(refused), 0))
        rules.when(name, (argument, TMPFILE, TMPFILE), error=errno.EOPNOTSUPP)
        for bit in refused:
            rules.when(name, (argument, TMPFILE | bit, bit), error=errno.EACCES)


def _sockets(rules: _Rules, *, network: bool) -> None:
    if not network:
        rules.allow(PAIR)
        rules.when("socketpair", (0, LOW_HALF, AF_UNIX), (1, KIND, STREAM))
        rules.when("sendto", (3, OUT_OF_BAND, 0), (4, (1 << 64) - 1, 0))
        return
    rules.allow(NETWORK)
    rules.refuse(["socketpair"])
    for level, names in SOCKET_OPTIONS.items():
        for name in names:
            rules.when("setsockopt", (1, LOW_HALF, level), (2, LOW_HALF, name))
    for family in (AF_INET, AF_INET6):
        for kind, protocol in ((STREAM, 0), (STREAM, TCP), (DATAGRAM, 0), (DATAGRAM, UDP)):
            rules.when("socket", (0, LOW_HALF, family), (1, KIND, kind), (2, LOW_HALF, protocol))


class _Rules:
    """Builds a filter with libseccomp; skips calls unknown to this architecture or library."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise FilterUnavailable(
                f"{LIBRARY} is missing: install it (Debian, Ubuntu: apt install {PACKAGE})"
            ) from None
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(
            self._library.seccomp_init(ctypes.c_uint32(REFUSE | errno.ENOSYS))
        )
        self._checked(
            self._library.seccomp_attr_set(
                self._context, FOREIGN_TABLE, ctypes.c_uint32(KILL_PROCESS)
            )
        )

    def allow(self, names: Iterable[str]) -> None:
        for name in names:
            self._add(ALLOW, name)

    def refuse(self, names: Iterable[str], error: int = errno.EPERM) -> None:
        for name in names:
            self._add(REFUSE | error, name)

    def when(self, name: str, *conditions: Condition, error: int | None = None) -> None:
        """Allows the call, or answers `error`, if for each condition (argument & mask) == value."""
        self._add(ALLOW if error is None else REFUSE | error, name, *conditions)

    def export(self) -> bytes:
        descriptor = os.memfd_create("filter")
        try:
            self._checked(self._library.seccomp_export_bpf(self._context, descriptor))
            return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        self._library.seccomp_release(self._context)

    def _add(self, action: int, name: str, *conditions: Condition) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return
        given = (
            _Comparison(argument, MASKED_EQUAL, mask, value) for argument, mask, value in conditions
        )
        comparisons = (_Comparison * len(conditions))(*given)
        add = self._library.seccomp_rule_add_array
        self._checked(
            add(
                self._context,
                ctypes.c_uint32(action),
                number,
                ctypes.c_uint(len(conditions)),
                comparisons,
            )
        )

    def _checked(self, result: int) -> None:
        if result < 0:
            raise FilterUnavailable(f"libseccomp refused a rule: {os.strerror(-result)}")
