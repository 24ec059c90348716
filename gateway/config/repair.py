"""Setting the broken parts of a configuration aside, so that the rest can be checked too.

One bad value must not hide the other mistakes until the next try. What is set aside is
never used: the file is refused all the same.
"""

from __future__ import annotations

from copy import deepcopy
from difflib import get_close_matches
from typing import Any

from gateway.config.findings import Finding, Path
from gateway.config.schema import Config

#: Harmless entries that take a broken one's place, so that its name and index stay known.
_STAND_INS: dict[Path, Any] = {
    ("rules",): {"protocol": "tcp", "to": "direct"},
    ("outbounds",): {"type": "reject"},
    ("rule_sets",): {"type": "inline", "entries": []},
    ("lists",): [],
    ("assertions",): {"from": "192.0.2.1", "to": "192.0.2.1:1", "expect": "direct"},
    ("lan", "subnets"): [],
    ("lan", "devices"): {"mac": ["00:00:5e:00:53:00"]},
}
#: Sections whose keys no other part of the file refers to by name: without a key, its
#: default holds.
_SETTINGS = frozenset({"lan", "inbound", "timeouts", "sniff", "marks", "log", "geo", "time_zone"})


def set_aside(data: Any, finding: Finding) -> Path | None:
    """Take the part that a finding spoils out of ``data``, in place.

    Returns the path of that part: what other checks say about it means nothing. None
    where the whole file is spoilt.
    """
    path = finding.path
    if finding.at == "key" and len(path) == 1:
        missing = Config.model_fields.keys() - data.keys()
        if get_close_matches(str(path[0]), missing):
            return None  # a misspelt section: what it names is lost
        data.pop(path[0])
        return path
    for section, stand_in in _STAND_INS.items():
        length = len(section)
        if path[:length] == section and len(path) > length:
            part = path[: length + 1]
            if finding.at == "key" and path == part:
                _container(data, part).pop(part[-1], None)
            else:
                _container(data, part)[part[-1]] = deepcopy(stand_in)
            return part
    names_are_lost = path in ((), ("lan",), *_STAND_INS)
    if names_are_lost or path[0] not in _SETTINGS:
        return None
    setting = path[:2]
    _container(data, setting).pop(setting[-1], None)
    return path[:1]


def _container(data: Any, path: Path) -> Any:
    for step in path[:-1]:
        data = data[step]
    return data
