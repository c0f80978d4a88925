"""``python -m fedsim`` and the script ``fedsim``: the command line, in a process of its own."""

import gc
import signal
import sys

from fedsim.cli.main import main
from fedsim.ground.process import claim


def process() -> int:
    """Run the command line; returns the exit code."""
    claim()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for when main has given it back: another Ctrl-C while Python ends
    try:
        return main()
    finally:
        gc.freeze()  # nothing to look for at exit


if __name__ == "__main__":
    sys.exit(process())
