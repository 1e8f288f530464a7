"""The bytes that a process (this one) stores in a scratch folder, with and without names."""

# ruff: noqa: PTH105, PTH108  # as tools are written

import ctypes
import mmap
import os

import pytest

from executors.python.scratch import MAX_FILES, TOO_MUCH, make_scratch, remove_scratch, stored

SIZE = 1 << 16


@pytest.fixture
def folder():
    path = make_scratch()
    yield path
    remove_scratch(path)


def create(path: str) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"x" * SIZE)
    return descriptor


def test_named_open_and_replaced_files_count_once_and_until_they_are_closed(folder):
    named, removed, replaced = (
        create(f"{folder}/{name}") for name in ("named", "removed", "replaced")
    )
    os.unlink(f"{folder}/removed")
    os.close(create(f"{folder}/new"))
    os.replace(f"{folder}/new", f"{folder}/replaced")
    assert stored(folder, os.getpid()) >= 4 * SIZE
    for descriptor in (named, removed, replaced):
        os.close(descriptor)
    assert 2 * SIZE <= stored(folder, os.getpid()) < 3 * SIZE


def test_files_of_others_do_not_count(folder, tmp_path):
    elsewhere = create(str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").unlink()
    assert stored(folder, os.getpid()) == 0
    os.close(elsewhere)


def test_a_file_that_only_a_mapping_holds_counts_as_too_much(folder):
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    descriptor = create(f"{folder}/mapped")
    os.unlink(f"{folder}/mapped")
    area = libc.mmap(
        None,
        ctypes.c_size_t(mmap.PAGESIZE),
        mmap.PROT_READ,
        mmap.MAP_PRIVATE,
        descriptor,
        ctypes.c_long(0),
    )
    assert SIZE <= stored(folder, os.getpid()) < 2 * SIZE
    os.close(descriptor)
    assert stored(folder, os.getpid()) == TOO_MUCH
    libc.munmap(ctypes.c_void_p(area), ctypes.c_size_t(mmap.PAGESIZE))
    assert stored(folder, os.getpid()) == 0


def test_too_many_files_count_as_too_much(folder):
    for number in range(MAX_FILES + 1):
        os.close(os.open(f"{folder}/{number}", os.O_CREAT))
    assert stored(folder, os.getpid()) == TOO_MUCH
    os.unlink(f"{folder}/0")
    assert stored(folder, os.getpid()) == 0


def test_a_process_that_is_gone_stores_what_has_a_name(folder):
    os.close(create(f"{folder}/named"))
    assert stored(folder, 1 << 30) >= SIZE


def test_a_process_that_has_ended_but_was_not_reaped_stores_what_has_a_name():
    """What is left of it belongs to root, so an ordinary user may not look into it."""
    user = os.fork()
    if user == 0:
        result = 1
        try:
            os.setresuid(*[os.getuid() or 65534] * 3)
            ended = os.fork() or os._exit(0)
            os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
            folder = make_scratch()
            os.close(create(f"{folder}/named"))
            result = int(stored(folder, ended) < SIZE)
            remove_scratch(folder)
        finally:
            os._exit(result)
    assert os.waitpid(user, 0)[1] == 0
