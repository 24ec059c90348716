"""Pipes and their pool: lent, returned, exhausted."""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.kernel import splice
from gateway.kernel.splice import PIPE_BYTES, PipePool


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


@pytest.fixture
def pool():
    made = PipePool()
    yield made
    made.close()


def test_a_pipe_is_large_and_does_not_block(pool):
    pipe = pool.acquire()
    assert fcntl.fcntl(pipe.writer, fcntl.F_GETPIPE_SZ) == PIPE_BYTES
    for end in (pipe.reader, pipe.writer):
        assert not os.get_blocking(end)
        assert not os.get_inheritable(end)
    pool.release(pipe)


def test_an_empty_pipe_is_lent_again(pool):
    first = pool.acquire()
    assert pool.lent == 1
    pool.release(first)
    assert pool.lent == 0
    assert pool.acquire() is first
    pool.release(first)


def test_a_pipe_with_bytes_inside_is_never_lent_again(pool):
    """The next flow would receive them."""
    first = pool.acquire()
    first.filled = os.write(first.writer, b"of another flow")
    pool.release(first)
    assert not is_open(first.reader)
    assert not is_open(first.writer)
    second = pool.acquire()
    with pytest.raises(BlockingIOError):
        os.read(second.reader, 1)
    pool.release(second)
    assert pool.lent == 0


def test_the_pool_keeps_a_bounded_number(pool):
    pipes = [pool.acquire() for _ in range(splice._KEEP + 5)]
    for pipe in pipes:
        pool.release(pipe)
    assert sum(is_open(pipe.reader) for pipe in pipes) == splice._KEEP
    pool.close()
    assert not any(is_open(pipe.reader) for pipe in pipes)


@pytest.mark.parametrize("room", [0, 1], ids=["none", "one-end"])
def test_no_descriptors_no_pipe(pool, descriptors, room):
    descriptors(room)
    for _ in range(3):
        assert pool.acquire() is None, "and what was begun is not left behind"
    assert pool.lent == 0


@pytest.mark.usefixtures("root")
def test_a_user_whose_quota_is_spent_gets_no_small_pipes():
    """The kernel would hand out pipes of 8 KiB (pipe(7), pipe-user-pages-soft)."""
    script = """
import fcntl, os
os.setuid(54321)  # root has no quota
from gateway.kernel.splice import PipePool
pool, pipes = PipePool(), []
while len(pipes) < 1000 and (pipe := pool.acquire()):
    pipes.append(pipe)
print(pool.lent == len(pipes), {fcntl.fcntl(pipe.writer, fcntl.F_GETPIPE_SZ) for pipe in pipes})
lowest = os.dup(0)
pool.acquire()
print(os.dup(0) - lowest)  # what was refused is closed
"""
    quota = int(Path("/proc/sys/fs/pipe-user-pages-soft").read_text())
    if not 0 < quota * resource.getpagesize() < 1000 * PIPE_BYTES:
        pytest.skip("this machine has no quota of pipe pages")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"True {{{PIPE_BYTES}}}\n1\n"
