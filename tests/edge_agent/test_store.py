"""The device's memory: whole or absent, whatever kills the process or the power at any step."""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.events import Key
from edge_agent.job import MEMORY, UPDATE
from edge_agent.store import Store, settle
from shared.errors import StateError
from shared.messages import Blob, Offer, Report

RUN = "run"


def key(round_: int, run: str = RUN) -> Key:
    return Key(run, round_, "train", "a" * 64)


def offer(round_: int) -> Offer:
    return Offer(run=RUN, round=round_, blob=Blob(digest=f"{round_:x}" * 64, size=10, chunk=512))


def finish(store: Store, round_: int, run: str = RUN) -> None:
    """Commit one round, as the agent does."""
    folder = store.workspace()
    (folder / MEMORY).write_bytes(f"memory {round_}".encode())
    (folder / UPDATE).write_bytes(f"update {round_}".encode())
    store.commit(folder, key(round_, run), offer(round_), 100 + round_, settle(folder))


def memory(store: Store, run: str = RUN) -> str | None:
    path = store.memory(run)
    return None if path is None else path.read_text()


def reopened(store: Store) -> Store:
    store.close()
    return Store(store.directory)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_a_new_store_remembers_nothing(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(directory)
    assert (store.done, store.answer, store.memory(RUN), store.examples) == (None, None, None, 0)
    assert caplog.records == []


def test_memory_and_answer_are_there_after_a_restart(directory: Path) -> None:
    store = Store(directory)
    finish(store, 1)
    store = reopened(store)
    assert store.done == key(1)
    assert store.answer == offer(1)
    assert store.update.read_text() == "update 1"
    assert memory(store) == "memory 1"
    assert store.examples == 101


def test_the_next_round_replaces_the_last_one(directory: Path) -> None:
    store = Store(directory)
    for round_ in (1, 2, 3):
        finish(store, round_)
    assert memory(store) == "memory 3"
    assert len(list((directory / "generations").iterdir())) == 1


@pytest.mark.parametrize("accepted", [True, False])
def test_a_settled_answer_is_gone_and_the_memory_stays(directory: Path, accepted: bool) -> None:
    store = Store(directory)
    finish(store, 1)
    store.forget(accepted=accepted)
    for seen in (store, reopened(store)):
        assert seen.answer is None
        assert seen.done == (key(1) if accepted else None)
        assert not seen.update.exists()
        assert memory(seen) == "memory 1"


def test_memory_is_of_one_run(directory: Path) -> None:
    store = Store(directory)
    finish(store, 1)
    assert memory(store, "another") is None
    finish(store, 1, run="another")
    assert memory(store, RUN) is None
    assert memory(store, "another") == "memory 1"


def test_a_report_can_be_pending(directory: Path) -> None:
    store = Store(directory)
    folder = store.workspace()
    report = Report(run=RUN, round=9, examples=5, metrics={"accuracy": 0.5})
    store.commit(folder, key(9), report, 5, settle(folder))
    assert reopened(store).answer == report


def test_epoch_counts_starts_and_outlives_a_wiped_state(directory: Path) -> None:
    store = Store(directory)
    first = store.epoch
    store = reopened(store)
    assert store.epoch == first + 1
    store.close()
    shutil.rmtree(directory)
    assert Store(directory).epoch >= first


def test_one_agent_per_state(directory: Path) -> None:
    store = Store(directory)
    with pytest.raises(StateError, match="own state_dir"):
        Store(directory)
    store.close()
    Store(directory).close()


def test_traffic_is_summed_per_run(directory: Path) -> None:
    store = Store(directory)
    store.count(RUN, up=5, down=7)
    store = reopened(store)
    traffic = store.count(RUN, up=1, down=1)
    assert (traffic.up, traffic.down) == (6, 8)
    assert store.count("another", up=1, down=2).down == 2


def test_downloads_that_are_not_wanted_go(directory: Path) -> None:
    store = Store(directory)
    for name in ("a" * 64, "b" * 64 + ".part", "b" * 64 + ".have", "c" * 64):
        (store.downloads / name).write_text("x")
    store.keep_downloads("b" * 64)
    assert sorted(path.name[0] for path in store.downloads.iterdir()) == ["b", "b"]


# --- damage -----------------------------------------------------------------------------------------------------------


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_empty])
@pytest.mark.parametrize("name", ["current", "generations/0000001/record.json", f"generations/0000001/{MEMORY}"])
def test_damaged_state_is_never_used_and_said(
    directory: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(directory)
    finish(store, 1)
    store.close()
    damage(directory / name)
    with caplog.at_level(logging.WARNING):
        store = Store(directory)
    assert store.answer is None, "an answer whose standing is unknown is not offered"
    assert memory(store) in (None, "memory 1")
    assert (memory(store) == "memory 1") == (name == "current"), "memory that is intact is used"
    assert "damaged" in caplog.text
    finish(store, 2)
    assert memory(reopened(store)) == "memory 2"


def test_the_generation_before_is_used_if_it_is_still_there(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(directory)
    finish(store, 1)
    shutil.copytree(directory / "generations/0000001", directory / "kept")
    finish(store, 2)
    store.close()
    shutil.move(directory / "kept", directory / "generations/0000001")
    damage_flip(directory / "generations/0000002" / MEMORY)
    store = Store(directory)
    assert memory(store) == "memory 1"
    assert (store.done, store.answer) == (None, None)
    assert "the one before" in caplog.text


def test_damaged_epoch_and_traffic_do_no_harm(directory: Path) -> None:
    store = Store(directory)
    epoch = store.epoch
    store.count(RUN, up=1, down=1)
    store.close()
    (directory / "epoch").write_text("\x00")
    (directory / "traffic").write_text("\x00")
    store = Store(directory)
    assert store.epoch >= epoch
    assert store.count(RUN, up=1, down=1).up == 1


# --- crashes ----------------------------------------------------------------------------------------------------------


class Crash:
    """Ends this process at the n-th step that touches the disk, by audit events and fsync.

    power  what was never synced is lost as well: such files are cut to nothing
    """

    EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")

    def __init__(self, directory: Path, step: int, power: bool) -> None:
        self._directory, self._left, self._power = directory, step, power
        self._safe = {os.stat(p).st_ino for p in directory.rglob("*")}
        self._fsync = os.fsync
        os.fsync = self.sync  # type: ignore[assignment]
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in self.EVENTS:
            self.step()

    def sync(self, descriptor: int) -> None:
        self.step()
        self._fsync(descriptor)
        self._safe.add(os.fstat(descriptor).st_ino)

    def step(self) -> None:
        self._left -= 1
        if self._left == 0:
            if self._power:
                self._left = -1
                for folder, _, names in os.walk(self._directory):
                    for name in names:
                        if os.stat(os.path.join(folder, name)).st_ino not in self._safe:
                            os.truncate(os.path.join(folder, name), 0)
            os._exit(7)


def crash_at(step: int, directory: Path, power: bool, action: Callable[[Path], None]) -> bool:
    """Run the action in a child that dies at that step; False if it was done before."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            Crash(directory, step, power)
            action(directory)
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 7)
    return status == 7


def commit_second_round(directory: Path) -> None:
    finish(Store(directory), 2)


def forget_first_round(directory: Path) -> None:
    Store(directory).forget(accepted=True)


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
def test_commit_survives_a_crash_at_every_step(tmp_path: Path, power: bool, caplog: pytest.LogCaptureFixture) -> None:
    original = tmp_path / "original"
    store = Store(original)
    finish(store, 1)
    store.close()
    seen = []
    for step in range(1, 1000):
        directory = tmp_path / f"crash{step}"
        shutil.copytree(original, directory)
        crashed = crash_at(step, directory, power, commit_second_round)
        store = Store(directory)
        round_ = store.done.round if store.done else None
        seen.append(round_)
        assert memory(store) == f"memory {round_}"
        assert store.answer == offer(round_ or 0)
        assert store.update.read_text() == f"update {round_}", "memory and update change together"
        finish(store, 3)
        assert memory(reopened(store)) == "memory 3"
        if not crashed:
            break
    assert seen == sorted(seen), "once switched, it stays"
    assert seen[0] == 1
    assert seen[-1] == 2
    assert len(seen) > 15
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power lost"])
def test_forget_survives_a_crash_at_every_step(tmp_path: Path, power: bool, caplog: pytest.LogCaptureFixture) -> None:
    original = tmp_path / "original"
    store = Store(original)
    finish(store, 1)
    store.close()
    pending = []
    for step in range(1, 1000):
        directory = tmp_path / f"crash{step}"
        shutil.copytree(original, directory)
        crashed = crash_at(step, directory, power, forget_first_round)
        store = Store(directory)
        assert memory(store) == "memory 1"
        assert store.done == key(1)
        pending.append(store.answer is not None)
        assert store.answer is None or store.update.read_text() == "update 1"
        if not crashed:
            break
    assert pending == sorted(pending, reverse=True)
    assert pending[0]
    assert not pending[-1]
    assert "damaged" not in caplog.text
