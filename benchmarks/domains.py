"""Where does deciding pay?  `python benchmarks/domains.py` runs all arms of all domains and reports the rules' regret.

A domain is a file in ``benchmarks/domains``. Finished runs are kept in ``runs/domains``, so that the same command
continues after Ctrl-C; ``--pack`` puts them into the committed file, from which ``--report-only`` makes the report.
"""

import sys

from domains._command import main  # the package of that name, which comes before this file

if __name__ == "__main__":
    sys.exit(main())
