"""Short chaos runs of the real thing: `talaria-lab chaos`, ten seconds of faults each, and it all holds."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from processes import template

MARK = "TALARIA_CHAOS_TEST"
pytestmark = pytest.mark.timeout(900)


# Each seed's schedule has every one of its faults, and the rounds last about as long as it.
@pytest.mark.parametrize(
    ("seed", "mode", "rounds", "faults"),
    [
        (3, "synchronous", 6, "broker-killed,coordinator-killed,coordinator-killed-mid-upload,agent-killed"),
        (14679, "buffered", 12, "short-queue,link-cut,link-dead,acks-lost,repeated,agent-stopped"),
        (1702, "synchronous", 6, "disk-full,clock-jumped,small-packets,broker-wiped,link-slow,link-late"),
    ],
    ids=["everybody dies", "links fail", "no room and no time"],
)
def test_nothing_is_lost_twice_or_torn(seed: int, mode: str, rounds: int, faults: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    folder = tmp_path / "chaos"
    (folder / "coordinator").mkdir(parents=True)
    (folder / "coordinator" / "template.onnx").write_bytes(template())
    command = [str(Path(sys.executable).parent / "talaria-lab"), "chaos", "--minutes", "0.18", "--seed", str(seed)]
    few = [f"rounds.count={rounds}", "fleet.devices=3", "rounds.deadline_s=30", f"rounds.mode={mode}"]
    command += [part for each in few for part in ("--set", each)]
    done = subprocess.run(
        [*command, "--faults", faults, "--run-dir", str(folder), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, MARK: mark},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["violations"] == []
    assert report["faults"].keys() == {*faults.split(",")}
    assert report["runs"][0]["rounds"] == rounds, "every aggregate came out again"
    assert report["runs"][0]["updates"] >= 2 * rounds
    assert report["runs"][0]["receipts_seen"] > 0
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
