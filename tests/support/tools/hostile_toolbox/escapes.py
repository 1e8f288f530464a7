# ruff: noqa: PTH104, PTH108  # as attackers write
"""Tools that look for ways around the sandbox; each returns the names of the open ways."""

import array
import contextlib
import ctypes
import fcntl
import mmap
import os
import signal
import socket
import struct
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hostile_toolbox.numbers import COMMON, X86_64

MIB = 1 << 20
CLOSE_RANGE, UNSHARE = 436, 2
EXIT = {"x86_64": 60, "aarch64": 93}
F_SETOWN_EX, F_NOTIFY, FIOSETOWN, SIOCSPGRP, FIOASYNC, TIOCSTI = (
    15,
    1026,
    0x8901,
    0x8902,
    0x5452,
    0x5412,
)
HELD = []


def _open_ways(attempts):
    """Names of the attempts that were not refused."""
    done = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, ValueError, RuntimeError):
            continue
        done.append(name)
    return done


def _libc(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def datagrams(args, _context):
    """Reaches a Unix socket of the host without ever opening one by `socket`."""

    def pair(kind):
        return socket.socketpair(socket.AF_UNIX, kind)[0]

    def connect(kind):
        sender = pair(kind)
        sender.connect(args["path"])
        sender.send(b"hello")

    ways = {}
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        ways[f"sendto {kind.name}"] = lambda kind=kind: pair(kind).sendto(b"hello", args["path"])
        ways[f"sendmsg {kind.name}"] = lambda kind=kind: pair(kind).sendmsg(
            [b"hello"], [], 0, args["path"]
        )
        ways[f"connect {kind.name}"] = lambda kind=kind: connect(kind)
    return _open_ways(ways)


def owned_signals(args, _context):
    """Has the kernel signal another process when something happens to a descriptor of ours."""
    pid, own = args["pid"], signal.SIGUSR2

    def armed(set_owner, ends):
        set_owner(ends[0])
        fcntl.fcntl(ends[0], fcntl.F_SETSIG, own)
        fcntl.fcntl(ends[0], fcntl.F_SETFL, os.O_NONBLOCK | fcntl.FASYNC)
        os.write(ends[1], b"x")

    def sockets():
        HELD.append(socket.socketpair())
        return [end.fileno() for end in HELD[-1]]

    owner = struct.pack("i", pid)
    return _open_ways(
        {
            "F_SETOWN": lambda: armed(lambda end: fcntl.fcntl(end, fcntl.F_SETOWN, pid), os.pipe()),
            "F_SETOWN_EX": lambda: armed(
                lambda end: fcntl.fcntl(end, F_SETOWN_EX, struct.pack("ii", 1, pid)), os.pipe()
            ),
            "FIOSETOWN": lambda: armed(lambda end: fcntl.ioctl(end, FIOSETOWN, owner), sockets()),
            "SIOCSPGRP": lambda: armed(lambda end: fcntl.ioctl(end, SIOCSPGRP, owner), sockets()),
            "F_SETSIG": lambda: fcntl.fcntl(os.pipe()[0], fcntl.F_SETSIG, own),
            "F_NOTIFY": lambda: fcntl.fcntl(os.open(".", os.O_RDONLY), F_NOTIFY, 4),
            "F_SETLEASE": lambda: fcntl.fcntl(
                os.open(__file__, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK
            ),
            "FIOASYNC": lambda: fcntl.ioctl(os.pipe()[0], FIOASYNC, struct.pack("i", 1)),
            "kill": lambda: os.kill(pid, own),
            "killpg": lambda: os.killpg(os.getpgid(pid), 0),
            "tgkill": lambda: _libc("tgkill", pid, pid, own),
            "sigqueue": lambda: _libc("sigqueue", pid, own, None),
            "pidfd": lambda: signal.pidfd_send_signal(os.pidfd_open(pid), own),
            "setpriority": lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
            "affinity": lambda: os.sched_setaffinity(pid, {0}),
            "limits": lambda: __import__("resource").prlimit(pid, 7),
        }
    )


def _write(descriptor, size=MIB):
    os.write(descriptor, b"\xa5" * size)


def _named(number):
    return os.open(f"f{number}", os.O_RDWR | os.O_CREAT)


def _unlinked(number):
    descriptor = _named(number)
    os.unlink(f"f{number}")
    _write(descriptor)
    HELD.append(descriptor)


def _replaced(number):
    descriptor = _named(number)
    os.close(_named(f"{number}.new"))
    os.rename(f"f{number}.new", f"f{number}")
    _write(descriptor)
    HELD.append(descriptor)
    if number:
        os.unlink(f"f{number - 1}")


def _mapped(number):
    descriptor = _named(number)
    os.unlink(f"f{number}")
    _write(descriptor)
    HELD.append(_mapping(descriptor))
    os.close(descriptor)


def _mapping(descriptor):
    """A page keeps the whole file; Python's own module would keep the descriptor too."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(
        None,
        ctypes.c_size_t(mmap.PAGESIZE),
        mmap.PROT_READ,
        mmap.MAP_PRIVATE,
        descriptor,
        ctypes.c_long(0),
    )
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return address


def _nameless(_number):
    descriptor = os.open(".", os.O_RDWR | os.O_TMPFILE)
    _write(descriptor)
    HELD.append(descriptor)


def _preallocated(number):
    """Blocks beyond the file's end, which no limit of sizes counts."""
    descriptor = _named(number)
    os.unlink(f"f{number}")
    _libc("fallocate", descriptor, 1, ctypes.c_long(0), ctypes.c_long(MIB))
    HELD.append(descriptor)


def hide(args, _context):
    """Stores 24 MiB that no name in the scratch folder leads to, and stays."""
    ways = {
        "replaced": _replaced,
        "mapped": _mapped,
        "nameless": _nameless,
        "preallocated": _preallocated,
    }
    way = ways.get(args["way"], _unlinked)
    if args["way"] == "leaderless":
        threading.Thread(target=_store, args=(way,)).start()
        _libc("syscall", EXIT[os.uname().machine], 0)  # ends the first thread alone
    if args["way"] == "apart":
        with ThreadPoolExecutor(1, initializer=_own_table) as pool:
            return pool.submit(_store, way).result()
    return _store(way)


def _store(way):
    for number in range(24):
        way(number)
    time.sleep(20)
    return "hidden"


def _own_table():
    """Gives this thread its own descriptor table, to hide the files that it holds."""
    _libc("syscall", CLOSE_RANGE, 1_000, 2_000, UNSHARE)


def buffers(_args, _context):
    """Memory of the kernel that the bound of the address space does not count."""

    def shared(flags, descriptor=-1):
        # The object behind a shared mapping lives, whole, while one of its pages is mapped.
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        address = libc.mmap(
            None, ctypes.c_size_t(MIB), mmap.PROT_READ, flags, descriptor, ctypes.c_long(0)
        )
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")

    def enlarge(option):
        pair = socket.socketpair()
        pair[0].setsockopt(socket.SOL_SOCKET, option, 4 * MIB)

    def in_flight():
        pair = socket.socketpair()
        rights = array.array("i", [pair[0].fileno()])
        pair[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def spliced():
        ends = os.pipe()
        with contextlib.closing(mmap.mmap(-1, MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) as pages:
            vector = struct.pack("PN", ctypes.addressof(ctypes.c_char.from_buffer(pages)), 4096)
            _libc("vmsplice", ends[1], ctypes.c_char_p(vector), ctypes.c_size_t(1), 0)

    return _open_ways(
        {
            "shared": lambda: shared(mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
            "zero": lambda: shared(mmap.MAP_SHARED, os.open("/dev/zero", os.O_RDONLY)),
            "huge": lambda: shared(mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000),
            "pipe": lambda: fcntl.fcntl(os.pipe()[0], 1031, MIB),
            "send buffer": lambda: enlarge(socket.SO_SNDBUF),
            "receive buffer": lambda: enlarge(socket.SO_RCVBUF),
            "in flight": in_flight,
            "out of band": lambda: socket.socketpair()[0].send(b"x", socket.MSG_OOB),
            "vmsplice": spliced,
            "splice": lambda: os.splice(os.open(__file__, os.O_RDONLY), os.pipe()[1], 1),
            "sendfile": lambda: os.sendfile(os.pipe()[1], os.open(__file__, os.O_RDONLY), 0, 1),
            "memfd": lambda: os.memfd_create("m"),
            "datagram pair": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
            "shm": lambda: _libc("shmget", 0, ctypes.c_size_t(4096), 0o1600),
            "queue": lambda: _libc(
                "mq_open", b"/daarion-hostile", os.O_RDWR | os.O_CREAT, 0o600, None
            ),
            "inotify": lambda: _libc("inotify_init"),
            "tmpfile": lambda: os.open(".", os.O_RDWR | os.O_TMPFILE),
            "attribute": lambda: os.setxattr(tempfile.mkstemp(dir=".")[1], "user.x", bytes(100)),
        }
    )


def socket_options(_args, _context):
    """Sets options of internet sockets.

    Returns the honest ones that were refused and the hostile ones that were not.
    """

    def set_option(level, name, value=1):
        with socket.socket() as connection:
            connection.setsockopt(level, name, value)

    general, tcp = socket.SOL_SOCKET, socket.IPPROTO_TCP
    honest = {
        name: lambda level=level, option=option, value=value: set_option(level, option, value)
        for name, level, option, value in (
            ("SO_REUSEADDR", general, socket.SO_REUSEADDR, 1),
            ("SO_KEEPALIVE", general, socket.SO_KEEPALIVE, 1),
            ("SO_BROADCAST", general, socket.SO_BROADCAST, 1),
            ("SO_LINGER", general, socket.SO_LINGER, struct.pack("ii", 1, 0)),
            ("SO_RCVTIMEO", general, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0)),
            ("SO_SNDTIMEO", general, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0)),
            ("TCP_NODELAY", tcp, socket.TCP_NODELAY, 1),
            ("TCP_KEEPIDLE", tcp, socket.TCP_KEEPIDLE, 60),
            ("TCP_KEEPINTVL", tcp, socket.TCP_KEEPINTVL, 60),
            ("TCP_KEEPCNT", tcp, socket.TCP_KEEPCNT, 3),
            ("TCP_USER_TIMEOUT", tcp, socket.TCP_USER_TIMEOUT, 1000),
            ("IP_RECVERR", socket.IPPROTO_IP, 11, 1),
        )
    }
    hostile = {
        "SO_SNDBUF": lambda: set_option(general, socket.SO_SNDBUF, 64 * MIB),
        "SO_RCVBUF": lambda: set_option(general, socket.SO_RCVBUF, 64 * MIB),
        "SO_RCVLOWAT": lambda: set_option(general, socket.SO_RCVLOWAT, 4 * MIB),
        "SO_REUSEPORT": lambda: set_option(general, socket.SO_REUSEPORT),
        "SO_ZEROCOPY": lambda: set_option(general, 60),
        "SO_ATTACH_FILTER": lambda: set_option(general, 26, struct.pack("HxxxxxxP", 1, 0)),
        "TCP_CONGESTION": lambda: set_option(tcp, socket.TCP_CONGESTION, b"reno"),
        "TCP_ULP": lambda: set_option(tcp, 31, b"tls"),
    }
    return {"lost": sorted(set(honest) - set(_open_ways(honest))), "open": _open_ways(hostile)}


def interfaces(_args, _context):
    """Returns the kernel's large, privileged and new interfaces that the filter did not refuse.

    With an impossible first argument none of them does anything, and each that reached the kernel
    would say so.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    reached = {}
    for name, number in {**COMMON, **(X86_64 if os.uname().machine == "x86_64" else {})}.items():
        ctypes.set_errno(0)
        result = libc.syscall(number, -1, -1, -1, -1, -1, -1)
        if result >= 0 or ctypes.get_errno() not in {1, 38, 95}:
            reached[name] = ctypes.get_errno()
    return reached


def other_tables(args, _context):
    """Calls through the kernel's other tables, x32 and 32-bit, which ends a confined process."""
    if args["table"] == "x32":
        return ctypes.CDLL(None).syscall(0x40000000 + 39)
    code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, getpid; int 0x80; ret
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


def neighbours(args, _context):
    """Opens what belongs to other processes through /proc."""
    paths = [
        f"/proc/{pid}/{file}"
        for pid in (1, *args["pids"])
        for file in ("mem", "environ", "root/etc", "fd")
    ]
    return _open_ways(
        {path: lambda path=path: os.close(os.open(path, os.O_RDONLY)) for path in paths}
    )


def own_tables(_args, _context):
    """Returns the ways to a thread with descriptors of its own that are open."""
    return _open_ways(
        {
            "clone": _clone_with_own_table,
            "close_range": _own_table,
            "unshare": lambda: _libc("unshare", 0x400),
        }
    )


def _clone_with_own_table():
    libc = ctypes.CDLL(None, use_errno=True)
    HELD.append(ctypes.create_string_buffer(1 << 16))
    top = ctypes.c_void_p(ctypes.addressof(HELD[-1]) + (1 << 16) - 64)
    of_a_thread = (
        0x100 | 0x200 | 0x800 | 0x10000 | 0x40000
    )  # VM, FS, SIGHAND, THREAD, SYSVSEM; not FILES
    if libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), top, of_a_thread, None) == -1:
        raise OSError(ctypes.get_errno(), "clone")


def open_files(_args, _context):
    """Returns how many descriptors there can be."""
    opened = [0]
    with contextlib.suppress(OSError):
        while True:
            opened.append(os.dup(0))
    return max(opened) + 1


def locks(args, _context):
    """Holds locks on every second byte of a file that others use."""
    with Path(__file__).open("rb") as file:
        for number in range(1_000):
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 2 * number)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(args["seconds"])
    return "locked"
