"""The shape of the program: who may import whom, who opens files, who opens sockets."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gateway"

#: A part (package or module below ``gateway``) and its layer. Imports go down only.
LAYERS = {
    "flow": 0, "decision": 0, "marks": 0, "errors": 0, "version": 0,
    "config": 1, "wire": 1,
    "groups": 2, "policy": 2, "sniff": 2,
    "plan": 3,
    "exchange": 4, "kernel": 4,
    "inbound": 5, "outbound": 5, "relay": 5, "rulesets": 5,
    "assembly": 6, "blueprint": 6, "breaker": 6, "changes": 6, "clock": 6, "control": 6,
    "dispatch": 6, "errands": 6, "explain": 6, "facts": 6, "icmp": 6, "kernel_state": 6, "lists": 6,
    "logs": 6, "pauses": 6, "probing": 6, "routing": 6, "signals": 6, "sniffing": 6,
    "sniffing_udp": 6, "trial": 6, "tunnel": 6, "tunnelled": 6, "udp": 6, "wiring": 6,
    "app": 7, "cli": 7, "dataplane": 7, "keeper": 7, "lab": 7, "plane": 7, "worker": 7,
    "workers": 7, "worker_process": 7, "__main__": 7,
}  # fmt: skip

#: Layers whose parts may import one another: values, the pipeline, and the wiring.
OPEN_LAYERS = {0, 6, 7}

#: What layers 0 to 3 may not know of: I/O, processes, clocks, logging.
IMPURE = {
    "asyncio", "socket", "_socket", "select", "selectors", "ssl", "subprocess", "threading",
    "multiprocessing", "signal", "time", "datetime", "logging", "pyroute2", "aiohttp", "iptc",
    "ctypes", "fcntl", "urllib", "http",
}  # fmt: skip

#: Modules of layers 0 to 3 that touch files, and why.
OPENS_FILES = {
    "config/load.py": "reads the configuration and the files that it names",
    "config/shipped.py": "lists the shipped rule sets",
    "policy/geo.py": "maps MMDB files",
    "policy/sets/formats.py": "reads lists",
    "policy/sets/mmdb.py": "maps MMDB files",
    "policy/sets/stored.py": "maps compiled rule sets",
}

#: Every socket that carries traffic comes from one factory, which sets the bypass mark.
SOCKET_FACTORY = ("kernel/sockets.py", "kernel/udp_sockets.py")
SOCKET_MAKERS = {
    "socket", "create_connection", "create_server", "open_connection", "start_server",
    "getaddrinfo", "gethostbyname", "socketpair", "create_datagram_endpoint", "fromfd",
}  # fmt: skip

#: Other places that may call one of those names, and why.
OPENS_SOCKETS = {
    "lab/": "plays the hosts around the gateway, in namespaces of their own",
    "control/": "the control socket is a unix socket",
    "kernel/handover.py": "hands descriptors to our own workers",
    "kernel/netlink.py": "netlink sockets carry no traffic",
    "kernel/tun_entrance.py": "sends into the device alone",
    "kernel/reactor.py": "has a descriptor of its own of asyncio's epoll instance, by ``fromfd``",
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(module: str) -> str:
    """``gateway.config.load`` and ``config/load.py`` are of the part ``config``."""
    steps = module.removesuffix(".py").replace("/", ".").removeprefix("gateway.").split(".")
    return steps[0]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every imported module, wherever the import stands, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            assert node.module is not None
            if node.module == "gateway":
                for alias in node.names:
                    yield f"gateway.{alias.name}", node.lineno
            else:
                yield node.module, node.lineno


def import_violations(module: str, tree: ast.Module) -> Iterator[str]:
    part = part_of(module)
    layer = LAYERS[part]
    for imported, line in imports(tree):
        if imported.startswith("gateway."):
            other = part_of(imported)
            below = LAYERS[other] < layer
            if not (other == part or below or (LAYERS[other] == layer and layer in OPEN_LAYERS)):
                yield f"{module}:{line}: {part} may not import {other}"
        elif layer <= 3 and imported.partition(".")[0] in IMPURE:
            yield f"{module}:{line}: layer {layer} may not import {imported}"


def calls(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """Every call as the name called, what it is looked up in, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id, "", node.lineno
            elif isinstance(node.func, ast.Attribute):
                yield node.func.attr, ast.unparse(node.func.value), node.lineno


def file_violations(module: str, tree: ast.Module) -> Iterator[str]:
    if LAYERS[part_of(module)] > 3 or module in OPENS_FILES:
        return
    touching = {
        "open",
        "read_text",
        "read_bytes",
        "write_text",
        "write_bytes",
        "glob",
        "iterdir",
        "open_database",
    }
    for name, _, line in calls(tree):
        if name in touching:
            yield f"{module}:{line}: only {', '.join(OPENS_FILES)} may call {name}()"


def socket_violations(module: str, tree: ast.Module) -> Iterator[str]:
    if module in SOCKET_FACTORY or module.startswith(tuple(OPENS_SOCKETS)):
        return
    for name, _, line in calls(tree):
        if name in SOCKET_MAKERS:
            yield f"{module}:{line}: only {SOCKET_FACTORY[0]} may call {name}()"


def test_every_part_has_a_layer() -> None:
    parts = {part_of(name_of(path)) for path in MODULES} - {"__init__"}
    assert parts <= set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_keeps_to_its_layer(path: Path) -> None:
    module, tree = name_of(path), tree_of(path)
    if path.name == "__init__.py":
        code = [node for node in tree.body if not isinstance(node, ast.Expr)]
        assert code == [], "no logic in __init__.py"
        return
    found = [
        *import_violations(module, tree),
        *file_violations(module, tree),
        *socket_violations(module, tree),
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "code", "expected"),
    [
        ("config/x.py", "import socket", "layer 1 may not import socket"),
        ("plan/x.py", "def f():\n    from asyncio import run", "layer 3 may not import asyncio"),
        ("config/x.py", "from gateway.plan.host import HostFacts", "config may not import plan"),
        ("config/x.py", "from gateway import policy", "config may not import policy"),
        ("inbound/x.py", "from gateway.outbound.base import A", "inbound may not import outbound"),
        ("kernel/x.py", "import gateway.relay.tcp", "kernel may not import relay"),
        ("policy/x.py", "p.read_text()", "may call read_text()"),
        ("plan/x.py", "open('/proc')", "may call open()"),
        ("relay/x.py", "s = socket.socket()", "may call socket()"),
        ("outbound/x.py", "await loop.create_connection(f)", "may call create_connection()"),
        ("dispatch.py", "socket.getaddrinfo(h, 1)", "may call getaddrinfo()"),
    ],
)
def test_violations_are_seen(module: str, code: str, expected: str) -> None:
    tree = ast.parse(code)
    found = [
        *import_violations(module, tree),
        *file_violations(module, tree),
        *socket_violations(module, tree),
    ]
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("policy/x.py", "from gateway.config.schema import Config"),
        ("inbound/x.py", "from gateway.kernel.sockets import listen\nimport socket"),
        ("app.py", "from gateway.cli.main import main"),
        ("config/load.py", "path.read_text()"),
        ("kernel/sockets.py", "socket.socket()"),
        ("lab/x.py", "socket.create_connection(a)"),
    ],
)
def test_what_is_allowed_is_not_reported(module: str, code: str) -> None:
    tree = ast.parse(code)
    assert list(import_violations(module, tree)) == []
    assert list(file_violations(module, tree)) == []
    assert list(socket_violations(module, tree)) == []
