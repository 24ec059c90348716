"""Every rule set of a configuration, as it stands on this machine now.

Small lists are read into memory. Large ones are compiled once, by a child process, into
a file named by what is in it: the same list is never compiled twice, and a file that is
damaged or of another version is made anew.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from gateway.config.findings import Finding
from gateway.config.load import Loaded
from gateway.config.schema import Config, FileRuleSet, InlineRuleSet, UrlRuleSet
from gateway.config.shipped import shipped_directory
from gateway.config.subject import named_sets
from gateway.errors import ConfigError, GatewayError, Problem
from gateway.policy.rulesets import RuleSetData
from gateway.policy.sets.entries import Entries, Skipped
from gateway.policy.sets.formats import READERS_VERSION, Contents, ListSource, read_list
from gateway.policy.sets.stored import FORMAT_VERSION, StoredPrefixes, open_stored
from gateway.rulesets.build import Compiler

log = logging.getLogger(__name__)

#: Lists up to this size (bytes) are read into memory: that takes less than to start a process.
SMALL_BYTES: Final = 256 << 10

#: A compiled set is kept so long (seconds) after it was last opened.
KEPT_S: Final = 30 * 86400

#: Told the set's name and how much is done, from 0 to 1.
SetProgress = Callable[[str, float], None]


class Stamp(NamedTuple):
    """What tells one version of a file from another; no file is all zeros."""

    modified_ns: int = 0
    size: int = 0
    inode: int = 0

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The version that is there now."""
        try:
            status = path.stat()
        except OSError:
            return cls()
        return cls(status.st_mtime_ns, status.st_size, status.st_ino)


class RuleSetStore:
    """The sets of one configuration. Blocks: call it from a thread without an event loop."""

    def __init__(self, loaded: Loaded, progress: SetProgress = lambda _name, _done: None) -> None:
        self.loaded = loaded
        self._progress = progress
        self._directory = Path(loaded.source.file).parent
        self._cache: Path | None = None
        self._compiler = Compiler()
        self._known: dict[str, tuple[Stamp, RuleSetData]] = {}
        self._seen: dict[str, Stamp] = {}
        self._databases: set[Path] = set()

    @property
    def config(self) -> Config:
        """The configuration whose sets these are."""
        return self.loaded.config

    @property
    def state_dir(self) -> Path:
        """Where copies of fetched lists and compiled sets are."""
        return self._directory / self.config.state_dir / "sets"

    def names(self) -> list[str]:
        """The sets that rules use, and those written down, which must be readable too."""
        return sorted(named_sets(self.config) | set(self.config.rule_sets))

    def load(self) -> dict[str, RuleSetData]:
        """All sets; one whose list has not changed since the last time is the same object.

        A fetched set without a copy is empty, with a warning. Raises ``ConfigError`` with the
        problems of all lists.
        """
        sets: dict[str, RuleSetData] = {}
        problems: list[Problem] = []
        for name in self.names():
            try:
                sets[name] = self.load_one(name)
            except ConfigError as error:
                problems.extend(error.problems)
        if problems:
            raise ConfigError(tuple(problems))
        return sets

    def load_one(self, name: str) -> RuleSetData:
        """One set. Raises ``ConfigError``."""
        own = self.config.rule_sets.get(name)
        if isinstance(own, InlineRuleSet):
            return RuleSetData.of(name, Contents("inline", Entries.of(own.entries)))
        source = self.source(name)
        stamp = Stamp.of(source.path)
        known = self._known.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        if isinstance(own, UrlRuleSet):
            data = self._read_copy(name, source, stamp)
        else:
            data = self._read(name, source, stamp)
        self._known[name] = (stamp, data)
        return data

    def changed(self) -> list[str]:
        """The sets whose lists are not those that were loaded, and do not change right now.

        A list that is being written looks new at every call; it counts once it looks the same
        at two.
        """
        before, self._seen = self._seen, {}
        for name, (stamp, _) in self._known.items():
            now = Stamp.of(self.source(name).path)
            if now != stamp:
                self._seen[name] = now
        return [name for name, stamp in self._seen.items() if before.get(name) == stamp]

    def refresh(self) -> dict[str, RuleSetData]:
        """All sets again; one whose list has become bad stays as it was, with an error logged."""
        sets: dict[str, RuleSetData] = {}
        for name in self.names():
            try:
                sets[name] = self.load_one(name)
            except ConfigError as error:
                log.error(  # noqa: TRY400 - the owner's mistake: a traceback would hide it
                    "rule set %s stays as it was: %s", name, error.problems[0].message
                )
                _, sets[name] = self._known[name]
                self._known[name] = (Stamp.of(self.source(name).path), sets[name])
        return sets

    def close(self) -> None:
        """End what is being compiled: nobody waits for it any more."""
        self._compiler.close()

    def forget_old(self) -> None:
        """Remove compiled sets that no gateway has opened for long."""
        oldest = time.time() - KEPT_S
        used = self._databases | {
            data.prefixes.place.path
            for _, data in self._known.values()
            if isinstance(data.prefixes, StoredPrefixes)
        }
        for path in (self.state_dir / "compiled").glob("*"):
            with suppress(OSError):
                if path not in used and path.stat().st_mtime < oldest:
                    path.unlink()

    @property
    def skipped(self) -> dict[str, tuple[Skipped, ...]]:
        """What loaded lists have and no rule set can, by set; only sets that are without."""
        return {name: data.skipped for name, (_, data) in self._known.items() if data.skipped}

    def is_empty(self, name: str) -> bool:
        """Whether a set that must be fetched has no copy."""
        return Stamp.of(self.source(name).path) == Stamp()

    def source(self, name: str) -> ListSource:
        """Where the list of a set lies that is not inline."""
        own = self.config.rule_sets.get(name)
        if isinstance(own, FileRuleSet):
            return ListSource(self._directory / own.path, own.format, own.select)
        if isinstance(own, UrlRuleSet):
            which = hashlib.blake2b(own.url.encode(), digest_size=6).hexdigest()
            named = own.url.partition("?")[0].rpartition("/")[2]
            path = self.state_dir / "fetched" / f"{name}-{which}"
            return ListSource(path, own.format, own.select, named or "list")
        return ListSource(shipped_directory() / f"{name}.yaml")

    def _read_copy(self, name: str, source: ListSource, stamp: Stamp) -> RuleSetData:
        """A fetched set: nothing that is wrong with its copy may keep the gateway from starting."""
        if stamp == Stamp():
            log.warning("rule set %s is empty: there is no copy of it yet", name)
            return RuleSetData(name)
        try:
            return self._read(name, source, stamp)
        except ConfigError as error:
            log.error(  # noqa: TRY400 - what is wrong is with the copy, not with the program
                "rule set %s is empty: %s", name, error.problems[0].message
            )
            with suppress(OSError):
                source.path.unlink()  # what is fetched next is then fetched whole
            return RuleSetData(name)

    def _read(self, name: str, source: ListSource, stamp: Stamp) -> RuleSetData:
        try:
            return self.open(name, source, stamp.size)
        except ConfigError:
            raise
        except GatewayError as error:
            own = self.config.rule_sets.get(name)
            key = "url" if isinstance(own, UrlRuleSet) else "path"
            finding = Finding(("rule_sets", name, key), str(error), error.hint)
            raise ConfigError((self.loaded.source.problem(finding),)) from error

    def open(self, name: str, source: ListSource, size: int) -> RuleSetData:
        """A set from any list. Raises as ``read_list``."""
        # The library for MMDB does not survive every damaged file: never in this process.
        if size <= SMALL_BYTES and source.format != "mmdb" and source.ending != ".mmdb":
            return RuleSetData.of(name, read_list(source))
        path = self._compiled_directory() / f"{_key(source)}.set"
        try:
            with suppress(OSError):
                os.utime(path)  # it is in use
            return open_stored(path, name)
        except GatewayError:
            log.info("compiling rule set %s", name)
            self._compiler.compile(source, path, lambda done: self._progress(name, done))
            return open_stored(path, name)

    def database(self, path: Path) -> Path:
        """A copy of an MMDB file that a child process has read whole, and did not die of.

        Nobody writes to the copy, while a file that is cut short under its readers kills them.
        Raises ``GatewayError`` where it is missing or damaged.
        """
        key = _key(ListSource(path, "mmdb", named="database"))
        copy = self._compiled_directory() / f"{key}.mmdb"
        self._databases.add(copy)
        try:
            whole = _key(ListSource(copy, "mmdb", named="database")) == key
        except GatewayError:
            whole = False
        if not whole:
            log.info("verifying %s", path)
            self._compiler.verify(path, copy)
        with suppress(OSError):
            os.utime(copy)  # it is in use
        return copy

    def _compiled_directory(self) -> Path:
        if self._cache is None:
            self._cache = self._writable_directory()
        return self._cache

    def _writable_directory(self) -> Path:
        path = self.state_dir / "compiled"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError:
            pass
        else:
            if os.access(path, os.W_OK):
                return path
        # Not root, as for a check, or a read-only disk: compiled again by the next process.
        passing = Path(tempfile.mkdtemp(prefix="gateway-sets-"))
        atexit.register(shutil.rmtree, passing, ignore_errors=True)
        return passing


def load_rule_sets(loaded: Loaded) -> dict[str, RuleSetData]:
    """Every rule set that a configuration uses or writes down, by name.

    The owner's go before shipped ones of the same name. Raises ``ConfigError``.
    """
    return RuleSetStore(loaded).load()


def _key(source: ListSource) -> str:
    """Names what a list is compiled to: its content, how it is read, and both versions."""
    digest = hashlib.blake2b(digest_size=16)
    how = (source.format, source.select, source.named or source.path.name)
    digest.update(repr((FORMAT_VERSION, READERS_VERSION, *how)).encode())
    try:
        with source.path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise GatewayError(
            f"{source.path} cannot be read: {error.strerror}", "check its permissions"
        ) from error
    return digest.hexdigest()
