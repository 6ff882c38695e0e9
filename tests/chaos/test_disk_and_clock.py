"""A full disk and a wrong clock are what the product would meet: ENOSPC or EFBIG, and another time.time()."""

import errno
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.chaos_disk import Disk
from lab.chaos_fleet import CLOCK

WRITES = """
import sys
for _ in sys.stdin:
    try:
        with open(sys.argv[1], 'wb') as file:
            file.write(bytes(100_000))
        print(0, flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""
MOUNTED = """
import sys
from pathlib import Path
from lab.chaos_disk import Disk, own_mounts
if not own_mounts():
    sys.exit(7)
disk = Disk(Path(sys.argv[1]), mounted=True)
assert disk.mounted
def tries(name):
    try:
        (disk.folder / name).write_bytes(bytes(100_000))
        return 0
    except OSError as error:
        return error.errno
first = tries('a')
disk.fill(None)
then = tries('b')
disk.empty(None)
disk.rescue(Path(sys.argv[2]))
print(first, then, tries('c'))
"""


def test_without_a_mount_a_running_process_can_write_no_large_file_until_the_disk_is_emptied(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "state", mounted=False)
    command = [sys.executable, "-c", WRITES, str(disk.folder / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def tries() -> int:
            child.stdin.write("go\n")
            child.stdin.flush()
            return int(child.stdout.readline())

        assert tries() == 0
        disk.fill(child.pid)
        assert tries() == errno.EFBIG
        disk.empty(child.pid)
        assert tries() == 0
        child.stdin.close()


def test_with_a_mount_nothing_fits_any_more(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MOUNTED, str(tmp_path / "state"), str(tmp_path / "rescued")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 7:
        pytest.skip("no mount namespaces on this machine")
    assert done.stdout.split() == ["0", str(errno.ENOSPC), "0"], done.stderr
    assert (tmp_path / "rescued").is_dir()
    assert not list((tmp_path / "state").iterdir()), "it was a disk of its own"


def test_the_clock_of_a_process_is_as_wrong_as_the_file_says(tmp_path: Path) -> None:
    place = tmp_path / "clock"
    place.write_text("-86400")
    code = CLOCK + "print(time.time(), time.time_ns(), sys.argv[1:])"
    said = subprocess.run([sys.executable, "-c", code, str(place), "run"], capture_output=True, text=True, check=True)
    seconds, nanoseconds, rest = said.stdout.split(maxsplit=2)
    assert abs(float(seconds) - (time.time() - 86_400)) < 60
    assert abs(int(nanoseconds) / 1e9 - float(seconds)) < 1
    assert rest.strip() == "['run']"
