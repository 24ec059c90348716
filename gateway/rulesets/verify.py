"""Read one MMDB file whole, in a process of its own: the library may not survive it.

It answers as ``gateway.rulesets.build`` does.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from gateway.errors import GatewayError
from gateway.policy.sets.mmdb import read_whole
from gateway.rulesets.build import NICENESS, replace_file, say


def main(source: str, target: str) -> int:
    """Entry point: ``python -m gateway.rulesets.verify SOURCE TARGET``."""
    os.nice(NICENESS)
    try:
        data = Path(source).read_bytes()
        with tempfile.NamedTemporaryFile() as copy:
            copy.write(data)
            copy.flush()
            read_whole(Path(copy.name))
        replace_file(Path(target), data)
    except OSError as error:
        say(error=f"{source} cannot be read: {error.strerror}", hint="check the path")
        return 1
    except GatewayError as error:
        say(error=f"{source}: {error}", hint=error.hint)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
