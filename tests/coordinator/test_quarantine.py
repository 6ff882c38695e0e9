"""Who does nothing but harm is not asked any more, and is asked again when somebody says so."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fake_device import answering
from fleet import World, adding, running

from coordinator.checkpoints import RunDirectory
from coordinator.cli import cli
from coordinator.engine import RoundEngine
from coordinator.events import DeviceOnline, OpenRound, Quarantined
from coordinator.journal import read_journal
from coordinator.quarantine import EXCUSED, Conduct, Entry, Ward
from coordinator.status import describe_status, status_of
from shared.config import RunConfig
from shared.config_rounds import AdmissionSettings, AggregationSettings, RoundSettings
from shared.errors import StateError
from shared.messages import Blob, Capabilities, Failure, Offer
from shared.tensors import Tensors

Begin = Callable[..., RunDirectory]
pytestmark = pytest.mark.timeout(60)
ENTRY = Entry("2026-01-02T03:04:05+00:00", "norm_too_large", "it moved too far", 5)
CAPABLE = Capabilities(profile="container", train=True)


# --- the policy -----------------------------------------------------------------------------------------------------


def test_so_many_in_a_row_are_enough() -> None:
    conduct = Conduct(3)
    assert [conduct.failed("a", code) for code in ("wrong_shape", "crashed", "wrong_shape")] == [0, 0, 3]


def test_one_answer_forgives_what_was_before() -> None:
    conduct = Conduct(2)
    assert conduct.failed("a", "crashed") == 0
    conduct.forgive("a")
    assert conduct.failed("a", "crashed") == 0
    assert conduct.failed("b", "crashed") == 0
    assert conduct.failed("a", "crashed") == 2


def test_devices_are_not_quarantined_for_heat_or_slowness() -> None:
    conduct = Conduct(1)
    assert {conduct.failed("a", code) for code in EXCUSED} == {0}
    assert conduct.failed("a", "crashed") == 1


def test_nobody_is_quarantined_where_that_is_off() -> None:
    conduct = Conduct(None)
    assert {conduct.failed("a", "crashed") for _ in range(100)} == {0}


# --- the folder -----------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    assert ward.entries() == {}
    ward.admit("b", ENTRY)
    ward.admit("a.1", ENTRY)
    assert Ward(tmp_path).entries() == {"a.1": ENTRY, "b": ENTRY}
    ward.release("b")
    assert Ward(tmp_path).devices() == {"a.1"}


def test_who_is_not_there_cannot_be_released(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    ward.admit("a", ENTRY)
    with pytest.raises(StateError, match="in quarantine: a"):
        ward.release("../a")


def test_a_file_in_another_form_counts(tmp_path: Path) -> None:
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / "a.json").write_text("because")
    assert Ward(tmp_path).entries()["a"].code == "unknown"


# --- a run ----------------------------------------------------------------------------------------------------------


def settled(directory: RunDirectory, **changes: Any) -> RunConfig:
    """The run's settings with other ones for admission."""
    return directory.record().config.model_copy(update={"admission": AdmissionSettings.model_validate(changes)})


def cohorts(world: World) -> dict[int, list[str]]:
    return {event["round"]: event["cohort"] for event in world.told("opened") if event["attempt"] == 1}


def far(_: str, received: Tensors) -> Tensors:
    return {name: array + np.asarray(1000, array.dtype) for name, array in received.items()}


class Releasing(World):
    """Somebody releases the liar when round 4 is opened."""

    def _tell(self, event: dict[str, Any]) -> None:
        super()._tell(event)
        if event["event"] == "opened" and event["round"] == 4:
            done = CliRunner().invoke(cli, ["release", str(self.directory.path), "liar"])
            assert done.exit_code == 0, done.output


async def test_a_device_is_quarantined_and_released_while_the_run_goes_on(begin: Begin, tmp_path: Path) -> None:
    """`min_devices` says three: who is in quarantine does not stop the others."""
    world = Releasing(begin(count=6, min_devices=3, quorum=2), tmp_path)
    liar = world.device("liar", lambda tensors, task: b"nonsense")
    async with running(world.device("a", adding(1)), world.device("b", adding(3)), liar):
        await world.coordinator(settled(world.directory, quarantine_after=2)).run()
    asked = {number: "liar" in cohort for number, cohort in cohorts(world).items()}
    assert asked[1]
    assert not asked[3]
    assert not asked[4]
    assert asked[5], "released, and asked again from the next round on"
    (first, *_) = world.told("quarantined")
    assert (first["device"], first["code"], first["count"]) == ("liar", "malformed_payload", 2)
    assert first["reason"]
    assert [event["device"] for event in world.told("released")] == ["liar"]
    assert all(len(line["accepted"]) == 2 for line in read_journal(world.directory.journal_path) if "accepted" in line)


async def test_a_quarantine_outlives_the_coordinator(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=2), tmp_path)
    Ward(world.directory.path).admit("liar", ENTRY)
    liar = world.device("liar")
    async with running(world.device("a", adding(1)), world.device("b", adding(3)), liar):
        await liar.announce()
        await world.coordinator().run()
    assert all("liar" not in cohort for cohort in cohorts(world).values())
    assert liar.tasks == []
    (told,) = world.told("quarantined")
    assert told == {"event": "quarantined", "device": "liar", **ENTRY.__dict__}
    assert world.told("finished")[0]["absent"] == ["liar"], "nothing came from it, nor was it waited for"
    status = status_of(world.directory)
    assert status["quarantined"] == {"liar": ENTRY.__dict__}
    assert "liar" in describe_status(status)
    json.dumps(status)


async def test_what_somebody_in_quarantine_sends_is_not_taken(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=1), tmp_path)
    Ward(world.directory.path).admit("liar", ENTRY)
    liar = world.device("liar")
    a = world.device("a", lambda tensors, task: None)
    async with running(a, world.device("b", adding(3)), liar):
        coordinator = asyncio.create_task(world.coordinator().run())
        await world.until("opened")
        await liar.say(Offer(run="run", round=1, blob=Blob(digest="1" * 64, size=10, chunk=512)))
        await liar.settled(1)
        coordinator.cancel()
    assert [(receipt.accepted, receipt.code) for receipt in liar.receipts] == [(False, "quarantined")]


def test_who_is_in_quarantine_is_not_missed_when_a_round_is_opened() -> None:
    engine = RoundEngine("run", RoundSettings(count=3, quorum=1, min_devices=2))
    engine.handle(Quarantined("bad"), 0.0)
    assert engine.handle(DeviceOnline("bad", CAPABLE), 0.0) == []
    (opened,) = engine.handle(DeviceOnline("good", CAPABLE), 0.0)
    assert isinstance(opened, OpenRound)
    assert opened.cohort == ("good",)


async def test_a_device_that_fails_again_and_again(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=4, min_devices=3, quorum=2), tmp_path)

    def fail(tensors: Tensors, task: Any) -> Failure:
        return Failure(run=task.run, round=task.round, code="crashed", reason="it always does")

    async with running(world.device("a"), world.device("b"), world.device("c", fail)):
        await world.coordinator(settled(world.directory, quarantine_after=2)).run()
    (told,) = world.told("quarantined")
    assert (told["device"], told["code"], told["reason"]) == ("c", "crashed", "it always does")
    assert "c" not in cohorts(world)[4]


async def test_an_accepted_update_starts_the_count_anew(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=6, min_devices=3, quorum=2), tmp_path)

    def now_and_then(tensors: Tensors, task: Any) -> Any:
        return b"nonsense" if task.round % 2 else adding(1)(tensors, task)

    async with running(world.device("a"), world.device("b"), world.device("c", now_and_then)):
        await world.coordinator(settled(world.directory, quarantine_after=2)).run()
    assert len(world.told("rejected")) >= 3
    assert world.told("quarantined") == []


async def test_where_most_fail_it_is_not_the_devices(begin: Begin, tmp_path: Path) -> None:
    world = World(begin(count=6, min_devices=4, quorum=2), tmp_path)

    def nonsense(tensors: Tensors, task: Any) -> bytes:
        return b"nonsense"

    bad = [world.device(name, nonsense) for name in ("x", "y", "z")]
    async with running(world.device("a"), world.device("b"), *bad):
        await world.coordinator(settled(world.directory, quarantine_after=1)).run()
    assert len(world.told("quarantined")) == 2


async def test_who_moves_too_far_is_refused(begin: Begin, tmp_path: Path) -> None:
    directory = begin(count=2, min_devices=4, quorum=3)
    world = World(directory, tmp_path)
    honest = [world.device(name, adding(value)) for name, value in (("a", 1), ("b", 2), ("c", 1.5))]

    def then_far(tensors: Tensors, task: Any) -> Any:
        return answering(far if task.round == 2 else lambda _, same: same, "z")(tensors, task)

    async with running(*honest, world.device("z", then_far)):
        await world.coordinator(settled(directory, max_norm=3.0)).run()
    lines = [line for line in read_journal(directory.journal_path) if line["event"] == "round"]
    (refused,) = lines[1]["rejected"]
    assert (refused["device"], refused["code"]) == ("z", "norm_too_large")
    assert "admission.max_norm" in refused["reason"]
    assert all(entry["norm"] > 0 for line in lines for entry in line["accepted"] if entry["device"] != "z")


async def test_a_rule_that_can_bear_nobody_says_so(begin: Begin, tmp_path: Path) -> None:
    directory = begin(count=1)
    record = directory.record()
    median = record.config.model_copy(update={"aggregation": AggregationSettings(rule="median")})
    directory.create(type(record)(record.run, median))
    world = World(directory, tmp_path)
    async with running(world.device("a", adding(1)), world.device("b", adding(3))):
        await world.coordinator(median).run()
    (warning,) = world.told("warning")
    assert "100%" in warning["text"]
