"""The processes of a study end with the one that started them."""

import subprocess
import sys

PARENT = """
import time
from ur4rec.compare.processes import one_thread_processes

if __name__ == "__main__":
    with one_thread_processes(1) as pool:
        pool.submit(print, "at work", flush=True).result()
        pool.submit(time.sleep, 3600)
        time.sleep(3600)
"""


def test_processes_end_when_their_parent_is_killed(tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "at work\n"
        parent.kill()
        rest, _ = parent.communicate(timeout=300)  # ends when nobody can write any more
    assert rest == ""
