# ruff: noqa: PTH105, PTH108, PTH123, PTH207, PLC0415  # as tools are written
"""Ordinary uses of the standard library, which no bound may prevent."""

import asyncio
import contextlib
import os
import sys


def computing():
    import datetime as dt
    import decimal
    import hashlib
    import json
    import random
    import re
    import secrets
    import statistics
    import uuid
    import zoneinfo

    has_zones = os.path.isdir("/usr/share/zoneinfo/Europe")  # noqa: PTH112
    kyiv = zoneinfo.ZoneInfo("Europe/Kyiv") if has_zones else dt.UTC
    assert dt.datetime.now(kyiv).year > 2000
    assert json.loads(json.dumps({"a": [1.5, None]})) == {"a": [1.5, None]}
    assert re.sub(r"\w+", "x", "а б") == "x x"
    assert statistics.mean([decimal.Decimal(1), decimal.Decimal(3)]) == 2
    assert len(hashlib.sha256(secrets.token_bytes(8) + uuid.uuid4().bytes).hexdigest()) == 64
    assert 0 <= random.random() < 1


def clocks():
    import signal
    import time

    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(0.02)
    assert time.monotonic() > 0
    assert time.process_time() > 0


def coroutines():
    async def both():
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        loop.call_soon_threadsafe(event.set)
        await asyncio.wait_for(asyncio.gather(event.wait(), asyncio.sleep(0.01)), 10)

    asyncio.run(both())


def waiting():
    import select

    ends = os.pipe()
    os.write(ends[1], b"x")
    assert select.select([ends[0]], [], [], 5)[0] == [ends[0]]
    with contextlib.closing(select.epoll()) as poll:
        poll.register(ends[0], select.EPOLLIN)
        assert poll.poll(5)


def processes_facts():
    import getpass
    import locale
    import platform
    import resource
    import shutil

    assert platform.system() == "Linux"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 16
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    assert locale.getlocale()
    assert shutil.get_terminal_size()
    assert not sys.stdout.isatty()
    assert os.cpu_count()
    assert os.sched_getaffinity(0)
    with contextlib.suppress(KeyError, OSError):
        getpass.getuser()


def threads():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(len, ["a", "bb", "ccc"])) == 6


def memory_database():
    import sqlite3

    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("create table t (a)")
        database.execute("insert into t values (1)")
        assert database.execute("select a from t").fetchall() == [(1,)]


def file_database():
    import sqlite3

    for journal in ("delete", "wal"):
        with contextlib.closing(sqlite3.connect(f"{journal}.db")) as database:
            database.execute(f"pragma journal_mode={journal}")
            database.execute("create table t (a)")
            database.executemany("insert into t values (?)", [(n,) for n in range(1_000)])
            database.commit()
            database.execute("delete from t where a % 2")
            database.commit()
            database.execute("vacuum")
            assert database.execute("select count(*) from t").fetchall() == [(500,)]


def temporary_files():
    import tempfile

    tempfile.tempdir = os.getcwd()  # noqa: PTH109
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 100_000)
        assert file.seek(0) == 0
    with (
        tempfile.NamedTemporaryFile() as file,
        tempfile.SpooledTemporaryFile(max_size=10) as spooled,
    ):
        spooled.write(b"x" * 100)
        file.write(b"y")


def replaced_files():
    import glob
    import shutil

    with open("new", "w") as file:
        file.write("text")
        file.flush()
        os.fsync(file.fileno())
        os.posix_fallocate(file.fileno(), 0, 100)
    os.replace("new", "old")
    shutil.copyfile("old", "copy")
    os.truncate("copy", 2)
    assert glob.glob("c*") == ["copy"]
    assert os.stat("copy").st_size == 2  # noqa: PTH116
    os.unlink("copy")


def mapped_files():
    import mmap

    with open("mapped", "w+b") as file:
        file.write(b"abc")
        file.flush()
        with mmap.mmap(file.fileno(), 0) as writable:
            writable[0:1] = b"x"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as readable:
            assert readable[:] == b"xbc"


def locked_files():
    import fcntl

    with open("locked", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)


def archives():
    import csv
    import gzip
    import zipfile

    with gzip.open("a.gz", "wt") as file:
        csv.writer(file).writerow(["a", "б"])
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.write("a.gz")
        archive.writestr("b", "text")
    with zipfile.ZipFile("a.zip") as archive:
        assert archive.read("b") == b"text"


WITHOUT_FILES = [computing, clocks, coroutines, waiting, processes_facts, memory_database]
WITH_FILES = [file_database, locked_files, temporary_files, replaced_files, mapped_files, archives]


def work(args, _context):
    """Does all of it; returns what failed."""
    failures = {}
    for part in (
        WITHOUT_FILES
        + (WITH_FILES if args["files"] else [])
        + ([threads] if args["threads"] else [])
    ):
        try:
            part()
        except Exception as error:
            failures[part.__name__] = repr(error)
    return failures
