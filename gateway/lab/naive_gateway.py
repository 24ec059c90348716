"""A gateway without what keeps it from diverting itself, to show that the loop is real.

``python naive_gateway.py [--marked] [--detect-loops] --config FILE --run-dir DIRECTORY``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.app import Gateway
from gateway.blueprint import Safety
from gateway.kernel.reactor import run


def main() -> None:
    """Run it until it is told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--marked", action="store_true")
    parser.add_argument("--detect-loops", action="store_true")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    given = parser.parse_args()
    safety = Safety(mark=given.marked, detect=given.detect_loops, prove=False)
    gateway = Gateway(given.config, given.run_dir, safety)
    run(gateway.serve())


if __name__ == "__main__":
    main()
