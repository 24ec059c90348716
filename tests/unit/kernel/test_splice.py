"""Pipes and their pool: lent, returned, exhausted."""

from __future__ import annotations

import errno
import fcntl
import os
import resource

import pytest

from gateway.kernel import splice
from gateway.kernel.splice import FLAGS, PIPE_BYTES, Pipe, PipePool


def is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError as error:
        assert error.errno == errno.EBADF
        return False
    return True


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
    pool.release(pipe, empty=True)


def test_an_empty_pipe_is_lent_again(pool):
    first = pool.acquire()
    assert pool.lent == 1
    pool.release(first, empty=True)
    assert pool.lent == 0
    assert pool.acquire() is first
    pool.release(first, empty=True)


def test_a_pipe_with_bytes_inside_is_never_lent_again(pool):
    """The next flow would receive them."""
    first = pool.acquire()
    os.write(first.writer, b"of another flow")
    pool.release(first, empty=False)
    assert not is_open(first.reader)
    assert not is_open(first.writer)
    second = pool.acquire()
    with pytest.raises(BlockingIOError):
        os.splice(second.reader, os.open(os.devnull, os.O_WRONLY), PIPE_BYTES, flags=FLAGS)
    pool.release(second, empty=True)
    assert pool.lent == 0


def test_the_pool_keeps_a_bounded_number(pool):
    pipes = [pool.acquire() for _ in range(splice._KEEP + 5)]
    for pipe in pipes:
        pool.release(pipe, empty=True)
    assert sum(is_open(pipe.reader) for pipe in pipes) == splice._KEEP
    pool.close()
    assert not any(is_open(pipe.reader) for pipe in pipes)


def test_no_descriptors_no_pipe(pool):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    try:
        for room in (0, 1):  # none, and one end's only
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, hard))
            assert pool.acquire() is None
            assert pool.lent == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not is_open(lowest), "a pipe that was begun is not left behind"
    pool.release(pool.acquire(), empty=True)


def test_a_pipe_that_stays_small_is_refused(monkeypatch):
    """What a user without privileges gets when his quota of pipe pages is spent (pipe(7))."""
    monkeypatch.setattr(splice, "PIPE_BYTES", 1 << 40)  # more than any pipe: the kernel refuses
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):  # noqa: PT011 - EINVAL here, EPERM for the quota
        Pipe()
    assert len(os.listdir("/proc/self/fd")) == before
