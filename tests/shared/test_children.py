"""A child that was told to dies with its parent, whatever ends the parent."""

import os
import select
import signal
import subprocess
import sys

PARENT = """
import subprocess, sys, time
from shared.children import dying_with_us
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=dying_with_us())
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_child_of_a_killed_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    try:
        assert select.select([child], [], [], 0)[0] == []  # a pidfd is readable once its process has ended
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert select.select([child], [], [], 20)[0] == [child]
    finally:
        os.close(child)
