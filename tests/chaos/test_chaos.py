"""Short chaos runs of the real thing: `talaria-lab chaos`, a quarter of a minute of faults each, and it all holds."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

MARK = "TALARIA_CHAOS_TEST"
SETS = {
    "everybody dies": "broker-killed,coordinator-killed,coordinator-killed-mid-upload,agent-killed",
    "links fail and the broker forgets": "broker-wiped,link-cut,link-dead,acks-lost,repeated,agent-stopped",
    "no room and no time": "disk-full,clock-jumped,small-packets,short-queue,link-slow,link-late",
}
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(("seed", "name"), list(enumerate(SETS, 1)))
def test_nothing_is_lost_twice_or_torn(seed: int, name: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    folder = tmp_path / "chaos"
    command = [str(Path(sys.executable).parent / "talaria-lab"), "chaos", "--minutes", "0.25", "--seed", str(seed)]
    few = ["--set", "rounds.count=3", "--set", "fleet.devices=3", "--set", "rounds.deadline_s=30"]
    done = subprocess.run(
        [*command, *few, "--faults", SETS[name], "--run-dir", str(folder), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, MARK: mark},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["violations"] == []
    assert report["faults"].keys() <= {*SETS[name].split(",")}
    assert sum(report["faults"].values()) >= 2, "hardly anything struck"
    assert report["runs"][0]["rounds"] == 3, "every aggregate came out again"
    assert report["runs"][0]["updates"] >= 6
    left = [folder for folder in Path("/proc").glob("[0-9]*") if _marked(folder, f"{MARK}={mark}".encode())]
    assert left == [], "something is left running"


def test_a_fault_that_is_unknown_is_answered_with_all_that_are_known() -> None:
    command = [str(Path(sys.executable).parent / "talaria-lab"), "chaos", "--faults", "flood"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no fault is called flood" in done.stderr
    assert "broker-wiped" in done.stderr


def _marked(folder: Path, mark: bytes) -> bool:
    try:
        return mark in (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
