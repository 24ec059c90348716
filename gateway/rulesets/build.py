"""Compile one list, in a process of its own: its memory goes when it is done.

The child is told what to do on its command line, and answers on standard output with a line of
JSON each time that there is progress, and one at the end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from gateway.errors import ConfigError, GatewayError, Problem
from gateway.kernel.children import undisturbed
from gateway.policy.sets.formats import ListSource, read_list
from gateway.policy.sets.stored import pack

#: The lowest priority that still runs on a busy machine: flows come first (nice(2)).
NICENESS: Final = 10
#: Of the time that a big list takes, so much is reading it; the rest sorts and writes it.
_READING: Final = 0.6


class Compiler:
    """Starts the processes, and ends them with itself."""

    def __init__(self) -> None:
        self._children: set[subprocess.Popen[str]] = set()
        self._closed = False

    def close(self) -> None:
        """End what is being compiled, and begin no more: whoever waits for it gets an error."""
        self._closed = True
        for child in tuple(self._children):
            child.kill()

    def compile(self, source: ListSource, target: Path, progress: Callable[[float], None]) -> None:
        """Compile a list into ``target``, which is replaced whole or not at all.

        Blocks. Raises as ``read_list``, and ``GatewayError`` where the child is lost.
        """
        arguments = [str(source.path), source.format, source.select, source.named, str(target)]
        self._run("gateway.rulesets.build", arguments, progress)

    def verify(self, source: Path, target: Path) -> None:
        """Copy an MMDB file to ``target`` if all of it can be read.

        Blocks. Raises ``GatewayError``.
        """
        self._run("gateway.rulesets.verify", [str(source), str(target)], lambda _done: None)

    def _run(self, module: str, arguments: list[str], progress: Callable[[float], None]) -> None:
        command = [sys.executable, "-m", module, *arguments]
        with undisturbed():
            started = subprocess.Popen(
                command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
            )
        with started as child:
            self._children.add(child)
            try:
                if self._closed:
                    child.kill()
                assert child.stdout is not None
                answer: dict[str, Any] = {}
                for line in child.stdout:
                    answer = json.loads(line)
                    if "progress" in answer:
                        progress(answer["progress"])
                status = child.wait()
            finally:
                self._children.discard(child)
                child.kill()  # which does nothing where it has ended
                child.wait()  # interrupted, `with` would not wait for long
        if "problems" in answer:
            raise ConfigError(tuple(Problem(**each) for each in answer["problems"]))
        if "error" in answer:
            raise GatewayError(answer["error"], answer["hint"])
        if status != 0:
            cause = f"signal {-status}" if status < 0 else f"status {status}"
            raise GatewayError(
                f"{arguments[0]}: the process that reads it ended with {cause}",
                "the file is damaged, or memory ran out: get it anew, or take a smaller list",
            )


def main(path: str, form: str, select: str, named: str, target: str) -> int:
    """Entry point: ``python -m gateway.rulesets.build PATH FORMAT SELECT NAMED TARGET``."""
    os.nice(NICENESS)
    try:
        source = ListSource(Path(path), form, select, named)
        contents = read_list(source, lambda done: say(progress=done * _READING))
        say(progress=_READING)
        replace_file(Path(target), pack(contents))
    except ConfigError as error:
        say(problems=[asdict(problem) for problem in error.problems])
        return 1
    except GatewayError as error:
        say(error=str(error), hint=error.hint)
        return 1
    say(progress=1)
    return 0


def say(**message: object) -> None:
    """A line for the process that waits."""
    print(json.dumps(message), flush=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises ``GatewayError``."""
    fresh = path.with_suffix(f".{os.getpid()}")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise GatewayError(
            f"cannot write {path}: {error.strerror}", "make room there, or set `state_dir`"
        ) from error


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
