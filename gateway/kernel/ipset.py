"""Address sets of the iptables backend, through ``ipset restore`` and ``ipset save``.

A set's name tells what it holds, so a changed list is a new set. It is filled under another
name first: what has its name is whole (ipset(8), rename). Ours are all those whose name starts with
``gw_``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_network

from gateway.errors import ApplyError, CapabilityError
from gateway.kernel.children import undisturbed
from gateway.marks import SET_PREFIX
from gateway.plan.addresses import Network
from gateway.plan.model import AddressSet
from gateway.plan.render_iptables import SET_FAMILY, create_set
from gateway.policy.sets.networks import texts

_DRAFT = f"{SET_PREFIX}draft"
_FAMILIES = {word: family for family, word in SET_FAMILY.items()}
_NO_KERNEL_SUPPORT = "Cannot open session to kernel"


def read() -> dict[str, AddressSet]:
    """Our sets in the kernel, by name; none where ipset is not there at all.

    Raises ``ApplyError``.
    """
    return {name: parse_save(_run("save", name)) for name in names()}


def names() -> frozenset[str]:
    """The names of our sets; none where ipset is not there at all. Raises ``ApplyError``."""
    try:
        listed = _run("list", "-name")
    except CapabilityError:
        return frozenset()
    return frozenset(name for name in listed.split() if name.startswith(SET_PREFIX))


def create(wanted: AddressSet) -> None:
    """Make a set that is not there yet, whole or not at all. Raises ``ApplyError``."""
    _run("restore", text="".join(f"{line}\n" for line in restore_lines(wanted)))


def refresh(sets: Iterable[AddressSet]) -> None:
    """Restart the time-outs of the sets' elements. Raises ``ApplyError``."""
    lines = [f"add {wanted.name} {element}" for wanted in sets for element in wanted.elements]
    _run("restore", "-exist", text="\n".join(lines) + "\n")


def destroy(names: Iterable[str]) -> None:
    """Destroy these sets; no rule may refer to them any more. Raises ``ApplyError``."""
    lines = [f"destroy {name}" for name in names]
    if lines:
        _run("restore", text="\n".join(lines) + "\n")


def restore_lines(wanted: AddressSet) -> Iterator[str]:
    """The ``ipset restore`` input that makes a set; what a killed run left half done goes."""
    draft = replace(wanted, name=_DRAFT)
    yield f"{create_set(draft)} -exist"
    yield f"destroy {_DRAFT}"
    yield create_set(draft)
    for element in texts(_storable(wanted.elements)):
        yield f"add {_DRAFT} {element}"
    yield f"rename {_DRAFT} {wanted.name}"


def parse_save(text: str) -> AddressSet:
    """One set as ``ipset save`` prints it. Raises ``ApplyError`` for what is not one of ours."""
    name = ""
    options: dict[str, str] = {}
    elements: list[Network] = []
    try:
        for line in text.splitlines():
            match line.split():
                case ["create", name, "hash:net", *pairs]:
                    options = dict(zip(pairs[::2], pairs[1::2], strict=True))
                case ["add", _, element, *_]:
                    elements.append(ip_network(element))
                case _:
                    raise ValueError(line)
        family = _FAMILIES[options["family"]]
        timeout = int(options["timeout"]) if "timeout" in options else None
    except (ValueError, KeyError) as error:
        raise ApplyError(
            f"the set {name or text!r} has our prefix but is not one of ours: {error}",
            hint="find its owner, or remove it with `ipset destroy`",
        ) from error
    return AddressSet(name, family, tuple(elements if timeout else _joined(elements)), timeout)


def _storable(elements: Collection[Network]) -> Collection[Network]:
    """hash:net cannot hold a /0, beside which there is nothing else."""
    if len(elements) == 1:
        (element,) = elements
        return tuple(element.subnets()) if element.prefixlen == 0 else elements
    return elements


def _joined(elements: list[Network]) -> list[Network]:
    """Undo ``_storable``."""
    halves = [element for element in elements if element.prefixlen == 1]
    if len(halves) < 2:
        return elements
    return [element for element in elements if element.prefixlen != 1] + [halves[0].supernet()]


def _run(*arguments: str, text: str = "") -> str:
    try:
        with undisturbed():
            done = subprocess.run(
                ["ipset", *arguments], input=text, capture_output=True, text=True, check=False
            )
    except FileNotFoundError as error:
        raise CapabilityError(
            "ipset is not installed",
            hint="apt-get install ipset, or set inbound.backend: nftables",
        ) from error
    if done.returncode == 0:
        return done.stdout
    message = done.stderr.strip()
    if _NO_KERNEL_SUPPORT in message:
        raise CapabilityError(
            "this kernel has no ip_set", hint="modprobe ip_set, or set inbound.backend: nftables"
        )
    raise ApplyError(f"ipset {arguments[0]} failed: {message}", hint="run as root (CAP_NET_ADMIN)")
