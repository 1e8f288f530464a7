# ruff: noqa: PTH101, PTH102, PTH104, PTH108, PTH112, PTH123, PTH208, PTH211  # noqa: RUF100
# ruff: noqa: PLC0415, SIM105, RUF005  # as attackers write  # noqa: RUF100
"""Tools that try to harm their host. Each is bounded in itself, in case a sandbox fails."""

import asyncio
import ctypes
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

GIB = 1 << 30
MEMORY = []


def echo(args, context):
    return {
        "args": args,
        "context": context,
        "environment": dict(os.environ),
        "directory": os.listdir("."),
        "modules": "json" in sys.modules,
    }


async def echo_async(args, _context):
    await asyncio.sleep(0.01)
    return args


def secret(args, _context):
    return {
        "length": len(os.environ["API_KEY"]),
        "leak": [os.environ["API_KEY"], {os.environ["API_KEY"]: 1}],
    }


def secret_error(args, _context):
    raise RuntimeError("cannot log in with " + "x" * args.get("pad", 0) + os.environ["API_KEY"])


def sleep(args, _context):
    time.sleep(args.get("seconds", 30))
    return "awake"


def sleep_unkillable(_args, _context):
    import signal

    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    try:
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)  # no longer die with the parent
        os.setsid()
    except OSError:
        pass
    for descriptor in range(64):  # not even hold the pipes
        try:
            os.close(descriptor)
        except OSError:
            pass
    time.sleep(30)


def spin(_args, _context):
    end = time.time() + 30
    while time.time() < end:
        pass


def fork_bomb(_args, _context):
    forked = 0
    for _ in range(30):
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        forked += 1
    return forked


def thread_bomb(_args, _context):
    for _ in range(30):
        threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
    return threading.active_count()


def program(_args, _context):
    return subprocess.run(
        ["/bin/sh", "-c", "id"], capture_output=True, text=True, check=False
    ).stdout


def raw_fork(_args, _context):
    libc = ctypes.CDLL(None, use_errno=True)
    outcomes = []
    for number, arguments in ((57, ()), (58, ()), (56, (17, 0, 0, 0, 0)), (435, (0, 0))):
        pid = libc.syscall(number, *arguments)
        if pid == 0:
            os._exit(0)
        outcomes.append(pid)
    return outcomes


def allocate(_args, _context):
    if resource.getrlimit(resource.RLIMIT_AS)[0] > 4 * GIB:
        return "unbounded"
    MEMORY.append(bytearray(8 * GIB))
    return "allocated"


def allocate_slowly(_args, _context):
    if resource.getrlimit(resource.RLIMIT_AS)[0] > 4 * GIB:
        return "unbounded"
    while sum(map(len, MEMORY)) < 8 * GIB:
        MEMORY.append(bytearray(16 << 20))
    return "allocated"


def write(args, _context):
    written = []
    for path in args["paths"]:
        try:
            Path(path).write_text("harm")
        except OSError:
            continue
        written.append(path)
    return written


def read(args, _context):
    """Returns the paths that let themselves be read or listed."""
    opened = []
    for path in args["paths"]:
        try:
            os.listdir(path) if os.path.isdir(path) else Path(path).read_bytes()
        except OSError:
            continue
        opened.append(path)
    return opened


def tamper(args, _context):
    path = args["path"]
    attempts = {
        "chmod": lambda: os.chmod(path, 0o777),
        "chown": lambda: os.chown(path, os.getuid(), os.getgid()),
        "utime": lambda: os.utime(path, (0, 0)),
        "unlink": lambda: os.unlink(path),
        "rename": lambda: os.rename(path, path + ".moved"),
        "truncate": lambda: os.truncate(path, 0),
        "symlink": lambda: os.symlink(path, path + ".link"),
        "link": lambda: os.link(path, path + ".hard"),
        "mkdir": lambda: os.mkdir(path + ".dir"),
        "setxattr": lambda: os.setxattr(path, "user.x", b"1"),
        "mknod": lambda: os.mkfifo(path + ".fifo"),
    }
    done = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        done.append(name)
    return done


def scratch(args, _context):
    with open("note.txt", "w") as file:
        file.write("x" * args.get("bytes", 10))
    return [Path("note.txt").stat().st_size, os.listdir(".")]


def fill_scratch(_args, _context):
    written = 0
    for number in range(4_000):
        with open(f"f{number}", "wb") as file:
            written += file.write(bytes(1 << 18))
        if written > 512 << 20:
            return "unbounded"
        time.sleep(0.002)
    return "filled"


def many_files(_args, _context):
    for number in range(3_000):
        with open(f"f{number}", "w"):
            pass
        time.sleep(0.0002)
    return "made"


def fill_memory_files(_args, _context):
    written = []
    for folder in ("/dev/shm", "/tmp", "/run", "/"):
        try:
            with open(f"{folder}/daarion-hostile-{os.getpid()}", "wb") as file:
                file.write(bytes(1 << 20))
        except OSError:
            continue
        written.append(folder)
    try:
        os.memfd_create("m")
        written.append("memfd")
    except OSError:
        pass
    return written


def connect(args, _context):
    family = socket.AF_UNIX if isinstance(args["address"], str) else socket.AF_INET
    address = args["address"] if isinstance(args["address"], str) else tuple(args["address"])
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        sock.connect(address)
        return "connected"


def families(_args, _context):
    opened = []
    for name in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"):
        try:
            socket.socket(
                getattr(socket, name),
                socket.SOCK_RAW if name in {"AF_NETLINK", "AF_PACKET"} else socket.SOCK_STREAM,
            ).close()
        except (OSError, AttributeError):
            continue
        opened.append(name)
    return opened


def shared_memory(_args, _context):
    libc = ctypes.CDLL(None, use_errno=True)
    return [
        libc.shmget(0x5EED, 4096, 0o1600),
        libc.msgget(0x5EED, 0o1600),
        libc.semget(0x5EED, 1, 0o1600),
    ]


def kernel(_args, _context):
    """Returns the calls that were not refused, of those that a sandbox must refuse."""
    libc = ctypes.CDLL(None, use_errno=True)
    calls = {
        "unshare": 272,
        "bpf": 321,
        "io_uring_setup": 425,
        "userfaultfd": 323,
        "keyctl": 250,
        "perf_event_open": 298,
        "ptrace": 101,
    }
    passed = []
    for name, number in calls.items():
        ctypes.set_errno(0)
        result = libc.syscall(number, 0, 0, 0, 0, 0)
        if result >= 0 or ctypes.get_errno() not in {1, 38}:
            passed.append(name)
    return passed


def signals(args, _context):
    reached = []
    for pid in args["pids"]:
        try:
            os.kill(pid, 0)
        except OSError:
            continue
        reached.append(pid)
    return reached


def print_without_end(_args, _context):
    end = time.time() + 20
    while time.time() < end:
        os.write(1, b"spam " * 10_000)


def print_some(_args, _context):
    print("hello")
    print("warning", file=sys.stderr)
    return "printed"


def huge_result(args, _context):
    return "x" * args["bytes"]


def deep_result(_args, _context):
    value = []
    for _ in range(500):
        value = [value]
    return value


def no_json(args, _context):
    return {
        "set": {1, 2},
        "nan": float("nan"),
        "surrogate": "\ud800",
        "bytes": b"1",
        "key": {(1, 2): 3},
    }[args["what"]]


def raises(args, _context):
    kinds = {"value": ValueError("`due` lies in the past"),
             "os": FileNotFoundError(2, "No such file", "/srv/secret/place"), "key": KeyError("x"),
             "path": RuntimeError("cannot read /srv/app/config.yaml now"),
             "memory": MemoryError(), "exit": SystemExit(0),
             "interrupt": KeyboardInterrupt(), "stop": StopIteration()}  # fmt: skip
    raise kinds[args["what"]]


def dies(args, _context):
    if args["how"] == "exit":
        os._exit(0)
    if args["how"] == "crash":
        ctypes.string_at(0)
    if args["how"] == "abort":
        os.abort()
    sys.setrecursionlimit(10**8)

    def deeper(n):
        return deeper(n + 1) + [n]

    return deeper(0)


def forge(args, _context):
    """Writes to every descriptor what the parent may mistake for an answer."""
    frames = {
        "garbage": b"\x00\x00\x00\x05Rxxxx",
        "kind": None,
        "endless": b"\xff\xff\xff\xff" + b"R" * 100,
        "short": b"\x00\x00",
    }
    frame = frames[args["what"]]
    if frame is None:
        body = (
            b"F"
            + json.dumps(
                {"kind": "denied", "error": "see /srv/app/secret.key\x07 at 0x7f00deadbeef"}
            ).encode()
        )
        frame = len(body).to_bytes(4, "big") + body
    for descriptor in range(3, 32):
        try:
            os.write(descriptor, frame)
        except OSError:
            continue
    os._exit(0)


def imports(args, _context):
    __import__(args["module"])
    return "imported"


def loops_at_exit(_args, _context):
    import atexit

    atexit.register(time.sleep, 30)
    threading.Thread  # noqa: B018
    return "done"


_hidden = echo
borrowed = json.dumps
