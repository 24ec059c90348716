"""libnftables by ctypes: the five functions we need, and nothing of nft's own command line.

Source: libnftables(3). A context is made for each call, never kept: it holds a netlink
socket of the network namespace that was current when it was made, and is not thread-safe.
Making one costs about a millisecond.
"""

from __future__ import annotations

import ctypes
import json
import os
from contextlib import ExitStack
from functools import cache
from typing import Any

from gateway.errors import ApplyError, CapabilityError

_SONAME = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4
_OUTPUT_STATELESS = 1 << 2
_OUTPUT_TERSE = 1 << 11
#: At most so many sockets and files at a time; where it gets no socket, it ends the process
#: (``netlink_init_error`` of src/mnl.c).
_DESCRIPTORS = 4


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_SONAME)
    except OSError as error:
        raise CapabilityError(
            f"{_SONAME} cannot be loaded: {error}",
            hint="apt-get install libnftables1 nftables, or set inbound.backend: iptables",
        ) from error
    context = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_new.restype = context
    library.nft_ctx_output_set_flags.argtypes = [context, ctypes.c_uint]
    library.nft_ctx_set_dry_run.argtypes = [context, ctypes.c_bool]
    library.nft_run_cmd_from_buffer.argtypes = [context, ctypes.c_char_p]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
        getattr(library, name).argtypes = [context]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [context]
        getattr(library, name).restype = ctypes.c_char_p
    return library


def run(commands: str, *, dry_run: bool = False, terse: bool = False) -> str:
    """Run nft commands as one transaction and return what they print.

    ``dry_run`` lets the kernel judge the transaction without committing it. ``terse`` leaves
    out what sets hold.
    Raises ``ApplyError`` with nft's own message when the kernel or the parser refuses,
    ``CapabilityError`` when the library is missing.
    """
    flags = _OUTPUT_STATELESS | (_OUTPUT_TERSE if terse else 0)
    return _run(commands, flags=flags, dry_run=dry_run)


def query(command: str) -> list[dict[str, Any]]:
    """Run one listing command and return its objects (libnftables-json(5)).

    Raises as ``run`` does.
    """
    objects = json.loads(_run(command, flags=_OUTPUT_JSON, dry_run=False))["nftables"]
    return [item for item in objects if "metainfo" not in item]


def _run(commands: str, *, flags: int, dry_run: bool) -> str:
    library = _library()
    _require_descriptors()
    context = library.nft_ctx_new(0)
    if not context:
        raise CapabilityError("libnftables cannot start", hint="run as root (CAP_NET_ADMIN)")
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_output_set_flags(context, flags)
        library.nft_ctx_set_dry_run(context, dry_run)
        status = library.nft_run_cmd_from_buffer(context, commands.encode())
        output: bytes = library.nft_ctx_get_output_buffer(context)
        error: bytes = library.nft_ctx_get_error_buffer(context)
        if status != 0:
            # One mistake makes many messages; the first says what it is, and where.
            first = error.decode(errors="replace").splitlines()[:3]
            raise ApplyError(
                "\n".join(["nftables refused:", *first]),
                hint="gateway doctor says which nftables features this machine has",
            )
        return output.decode()
    finally:
        library.nft_ctx_free(context)


def _require_descriptors() -> None:
    with ExitStack() as opened:
        try:
            for _ in range(_DESCRIPTORS):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            raise ApplyError(
                f"nftables cannot be asked: {error.strerror}",
                hint="allow this process more open files (LimitNOFILE= in the service, ulimit -n)",
            ) from error
