"""The journal: append-only, idempotent, and whole after a crash."""

import json
from pathlib import Path

import pytest

from coordinator.journal import Journal, read_journal
from shared.errors import StateError


def line(number: int, **fields: object) -> dict[str, object]:
    return {"event": "round", "round": number, **fields}


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    lines = [line(1, wall_s=0.5), line(2), {"event": "personalized", "round": 3}]
    for each in lines:
        journal.append(each)
    assert list(read_journal(tmp_path / "j")) == lines


def test_a_line_that_is_there_is_not_written_again_also_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        journal = Journal(tmp_path / "j")
        journal.append(line(1))
        journal.append(line(1))
    assert list(read_journal(tmp_path / "j")) == [line(1)]


def test_every_torn_tail_is_cut_off(tmp_path: Path) -> None:
    whole = "".join(json.dumps(line(number)) + "\n" for number in (1, 2))
    for length in range(len(whole)):
        path = tmp_path / str(length)
        path.write_text(whole[:length])
        kept = whole[:length].count("\n")
        assert list(read_journal(path)) == [line(number) for number in range(1, kept + 1)]
        journal = Journal(path)
        for number in (1, 2, 3):
            journal.append(line(number))
        assert list(read_journal(path)) == [line(1), line(2), line(3)]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"event":"round","round":1}\nnonsense\n')
    with pytest.raises(StateError, match="line 2"):
        Journal(tmp_path / "j")


def test_without_a_file_there_are_no_lines(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path / "none")) == []


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(line(1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.append(line(2))
    assert list(read_journal(tmp_path / "j")) == [line(1)]
    journal.append(line(2))
    assert list(read_journal(tmp_path / "j")) == [line(1), line(2)]
