"""The invariants of a chaos run see what they are there to see."""

import json
from pathlib import Path

import pytest

from edge_agent.ears import Ears
from edge_agent.events import Key
from edge_agent.store import Store, settle
from lab.chaos_checks import Evidence, disbelieved, lost_or_twice, torn, tracebacks, unbounded
from shared.errors import Forged, Replayed
from shared.messages import Report


def journal(folder: Path, *rounds: list[str]) -> Path:
    lines = [
        {"event": "round", "round": number, "accepted": [{"device": name, "start": number} for name in devices]}
        for number, devices in enumerate(rounds, 1)
    ]
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_what_is_in_order_is_left_alone(tmp_path: Path) -> None:
    evidence = Evidence([(1, "a"), (1, "b"), (2, "a")], {(1, "a"), (2, "a")})
    assert list(lost_or_twice(journal(tmp_path, ["a", "b"], ["a"]), evidence)) == []


@pytest.mark.parametrize(
    ("evidence", "complaint"),
    [
        (Evidence([(1, "a"), (2, "b")], set()), "the update of b in round 2 was accepted, and is lost"),
        (Evidence([(1, "a"), (1, "a")], set()), "the update of a in round 1 was accepted 2 times"),
        (Evidence([], {(1, "c")}), "c has a receipt for round 1, and its update is lost"),
    ],
)
def test_what_is_lost_or_taken_twice_is_named(tmp_path: Path, evidence: Evidence, complaint: str) -> None:
    (fault,) = lost_or_twice(journal(tmp_path, ["a"], ["a"]), evidence)
    assert complaint in fault


def test_what_counts_twice_is_named(tmp_path: Path) -> None:
    (fault,) = lost_or_twice(journal(tmp_path, ["a", "a"]), Evidence())
    assert "round 1 counts a 2 times" in fault


def state(folder: Path) -> Path:
    """Of a device that has finished two tasks."""
    store = Store(folder)
    for number in (1, 2):
        workspace = store.workspace()
        (workspace / "memory.payload").write_bytes(b"what it remembers")
        key = Key("run", number, "personalize", "a" * 64)
        report = Report(run="run", round=number, examples=1, metrics={})
        store.commit(workspace, key, report, 1, settle(workspace))
    store.close()
    return folder


def test_a_whole_state_is_left_alone_and_a_torn_one_is_named(tmp_path: Path) -> None:
    folder = state(tmp_path / "state")
    assert list(torn("phone", folder, personalized=False)) == []
    (missing,) = torn("phone", folder, personalized=True)
    assert "reported a personal model, but" in missing
    current = folder / "current"
    current.write_bytes(current.read_bytes()[:-3])
    assert any("damaged" in fault for fault in torn("phone", folder, personalized=False))


def test_a_model_that_does_not_load_is_named(tmp_path: Path) -> None:
    folder = state(tmp_path / "state")
    slot = folder / "models" / "a"
    slot.mkdir(parents=True)
    (slot / "model.onnx").write_bytes(b"no model")
    (folder / "models" / "current").symlink_to("a")
    (fault,) = torn("phone", folder, personalized=True)
    assert "does not load" in fault


def test_memory_that_grows_is_named_and_memory_that_settles_is_not() -> None:
    growing, settled = [100.0 + 2 * n for n in range(200)], [100.0 + min(n, 20) for n in range(200)]
    assert list(unbounded({("a", 1): settled, ("a", 2): [100.0, 400.0]})) == []
    (fault,) = unbounded({("a", 1): settled, ("coordinator", 3): growing})
    assert fault.startswith("coordinator, start 3: grew")
    (fault,) = unbounded({("a", 1): [2000.0]})
    assert "more than" in fault


def test_a_traceback_is_named_with_what_it_says(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("fine\nTraceback (most recent call last):\n  File x\nKeyError: 'y'\n")
    (fault,) = tracebacks([log, tmp_path / "none.log"])
    assert fault.endswith("line 2: a traceback: KeyError: 'y'")


def test_what_a_device_does_not_believe_is_named_unless_it_is_only_late(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ears, log = Ears(None, tmp_path), tmp_path / "agent.log"
    ears.refuse("t", Replayed("number 1"))
    log.write_text(caplog.text)
    assert "replayed" in caplog.text
    assert list(disbelieved([log, tmp_path / "none.log"])) == []
    ears.refuse("t", Forged("not by us"))
    log.write_text(caplog.text)
    (fault,) = disbelieved([log])
    assert "forged: not by us" in fault
