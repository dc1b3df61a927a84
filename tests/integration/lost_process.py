"""A process of several, started by a test: one of them is lost, or fails, and the others must not wait for ever."""

import os
import signal
import sys

from ur4rec.cli.options import one_line_errors
from ur4rec.cli.together import together
from ur4rec.errors import DataError


def main(what):
    with one_line_errors(), together("torch", "cpu") as processes:
        processes.wait()
        if processes.rank == 1:
            if what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("the disk of process 1 must not be full, it is; free some space")
        processes.any(False)


if __name__ == "__main__":
    main(sys.argv[1])
