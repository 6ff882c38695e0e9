"""The buffered engine by hand: who is asked for what, when a round closes, what a slow device means for the rest."""

from pathlib import Path

import pytest

from coordinator.buffered import BufferedEngine
from coordinator.events import (
    AbandonRound,
    AskDevices,
    CloseRound,
    Command,
    DeviceAsleep,
    DeviceFailed,
    DeviceOffline,
    DeviceOnline,
    OpenPersonalization,
    OpenRound,
    Quarantined,
    Released,
    Tick,
    UpdateAccepted,
    Verdict,
)
from coordinator.transitions import diagram
from shared.config_rounds import RoundSettings
from shared.messages import Capabilities

ABLE = Capabilities(profile="container", train=True)


def engine(*devices: str, **settings: object) -> BufferedEngine:
    """Round 1 is open and these devices are asked."""
    chosen = {"count": 9, "quorum": 2, "min_devices": len(devices), "deadline_s": 100} | settings
    rounds = BufferedEngine("run", RoundSettings.model_validate({"mode": "buffered", **chosen}), seed=1)
    opened = [command for device in devices for command in rounds.handle(DeviceOnline(device, ABLE), 0)]
    assert [type(command) for command in opened] == [OpenRound]
    return rounds


def answer(rounds: BufferedEngine, device: str, now: float = 1) -> list[Command]:
    """The device's update of what it works on."""
    assert rounds.wanted(device) == "train"
    return rounds.handle(UpdateAccepted(device, rounds.start(device)), now)


def test_k_answers_make_the_next_tensors_and_a_slow_device_stops_nobody() -> None:
    rounds = engine("a", "b", "slow")
    assert answer(rounds, "a") == []
    assert rounds.wanted("a") is None  # it would only say the same again
    assert answer(rounds, "b") == [CloseRound(1, 1), OpenRound(2, 1, ("a", "b", "slow"))]
    assert {device: rounds.start(device) for device in ("a", "b", "slow")} == {"a": 2, "b": 2, "slow": 1}
    assert rounds.starts() == {1, 2}
    answer(rounds, "a")
    assert answer(rounds, "slow") == [CloseRound(2, 1), OpenRound(3, 1, ("a", "b", "slow"))]
    assert {device: rounds.start(device) for device in ("a", "b", "slow")} == {"a": 3, "b": 2, "slow": 3}


def test_a_device_may_have_two_updates_in_a_round_from_different_starts() -> None:
    rounds = engine("a", "b", "slow", enough=3)
    for device in ("a", "b", "slow"):
        closing = answer(rounds, device)
    assert closing[0] == CloseRound(1, 1)
    rounds = engine("a", "b", "slow")
    answer(rounds, "a")
    answer(rounds, "b")
    assert rounds.start("slow") == 1
    more = rounds.handle(UpdateAccepted("slow", 1), 2)
    assert more == [AskDevices(2, ("slow",))]  # at once, with the newest
    assert answer(rounds, "slow") == [CloseRound(2, 1), OpenRound(3, 1, ("a", "b", "slow"))]


def test_verdicts() -> None:
    rounds = engine("a", "b", "slow", max_staleness=1)
    answer(rounds, "a")
    assert rounds.judge("a", "run", 1) is Verdict.DUPLICATE
    assert rounds.judge("slow", "run", 2) is Verdict.FUTURE
    assert rounds.judge("x", "run", 1) is Verdict.NOT_IN_COHORT
    answer(rounds, "b")
    assert rounds.judge("slow", "run", 1) is Verdict.WELCOME
    assert rounds.judge("b", "run", 1) is Verdict.DUPLICATE
    answer(rounds, "a")
    opened = answer(rounds, "b")
    assert rounds.round == 3
    assert rounds.judge("slow", "run", 1) is Verdict.STALE  # two rounds have closed since
    assert opened[-1] == OpenRound(3, 1, ("a", "b", "slow"))
    assert rounds.start("slow") == 3  # so it begins anew


def test_no_more_than_the_cohort_are_at_work_and_a_free_place_goes_to_who_was_asked_least() -> None:
    rounds = engine("a", "b", "c", "d", cohort=2)
    at_work = {device for device in "abcd" if rounds.wanted(device)}
    assert len(at_work) == 2
    first = min(at_work)
    assert answer(rounds, first) == [AskDevices(1, (min(set("abcd") - at_work),))] or rounds.wanted(first) is None
    assert sum(rounds.wanted(device) == "train" for device in "abcd") == 2


def test_the_place_of_who_drops_off_is_free_and_its_late_answer_welcome() -> None:
    rounds = engine("a", "b", "c", cohort=2, min_devices=3)
    one, _ = sorted(device for device in "abc" if rounds.wanted(device))
    (third,) = (device for device in "abc" if not rounds.wanted(device))
    assert rounds.handle(DeviceOffline(one), 1) == [AskDevices(1, (third,))]
    assert rounds.judge(one, "run", 1) is Verdict.WELCOME


def test_everybody_has_the_deadline_for_itself_and_is_asked_again_after_it() -> None:
    rounds = engine("a", "b", "slow")
    answer(rounds, "a", now=60)
    answer(rounds, "b", now=60)
    assert (rounds.due("slow"), rounds.due("a")) == (100, 160)
    assert rounds.next_deadline(60) == 100
    assert rounds.handle(Tick(), 100) == [AskDevices(2, ("slow",))]
    assert (rounds.start("slow"), rounds.due("slow")) == (2, 200)
    assert rounds.judge("slow", "run", 1) is Verdict.STALE


def test_a_round_closes_at_its_deadline_with_a_quorum_and_is_asked_again_without() -> None:
    rounds = engine("a", "b", "c", enough=3)
    answer(rounds, "a")
    assert [type(c) for c in rounds.handle(Tick(), 100)] == [AbandonRound, OpenRound]
    answer(rounds, "b", now=101)
    assert rounds.handle(Tick(), 200)[0] == CloseRound(1, 2)


def test_a_fleet_that_always_fails_is_asked_twice_per_deadline() -> None:
    rounds = engine("a", "b")
    told: list[Command] = []
    for now in range(1, 50):
        for device in ("a", "b"):
            told += rounds.handle(DeviceFailed(device, 1, "broken"), now)
    assert [command.devices for command in told if isinstance(command, AskDevices)] == [("a",), ("b",)]
    assert isinstance(told[-1], AbandonRound)
    assert rounds.next_deadline(50) == 100
    assert rounds.handle(Tick(), 100) == [OpenRound(1, 2, ("a", "b"))]


def test_who_sleeps_keeps_its_task_while_it_means_to_be_back_in_time() -> None:
    rounds = engine("a", "b", "c", cohort=2, min_devices=3)
    one, _ = sorted(device for device in "abc" if rounds.wanted(device))
    assert rounds.handle(DeviceAsleep(one, 50), 1) == []  # its place stays taken
    assert len(rounds.handle(DeviceAsleep(one, 99), 2)) == 1  # too long
    assert rounds.wanted(one) == "train"


def test_who_is_in_quarantine_has_no_place() -> None:
    rounds = engine("a", "b", "c", cohort=2, min_devices=3)
    one, _ = sorted(device for device in "abc" if rounds.wanted(device))
    assert len(rounds.handle(Quarantined(one), 1)) == 1
    assert rounds.wanted(one) is None
    assert rounds.judge(one, "run", 1) is Verdict.QUARANTINED
    rounds.handle(Released(one), 2)
    assert rounds.judge(one, "run", 1) is Verdict.WELCOME


def test_the_last_round_ends_what_is_under_way() -> None:
    rounds = engine("a", "b", "slow", count=1)
    answer(rounds, "a")
    assert answer(rounds, "b") == [CloseRound(1, 1), OpenPersonalization(2)]
    assert rounds.wanted("slow") == "personalize"
    assert rounds.judge("slow", "run", 1, "train") is Verdict.STALE
    assert rounds.starts() == {2}


@pytest.mark.parametrize("buffered", [[], [("a", 2)], [("a", 2), ("slow", 1)]])
def test_a_restart_finds_the_same_buffer_and_everybody_at_work(buffered: list[tuple[str, int]]) -> None:
    before = engine("a", "b", "slow")
    answer(before, "a")
    answer(before, "b")
    after = engine("a", "b", "slow")
    after.restore(before.snapshot(), buffered, now=1000)
    assert after.answered() == {device for device, _ in buffered}
    starts = {"a": 2, "b": 2, "slow": 1}
    assert after.snapshot().asked == {d: s for d, s in starts.items() if (d, s) not in buffered}
    for device, start in buffered:
        assert after.judge(device, "run", start) is Verdict.DUPLICATE
    told = []
    for device in sorted(after.snapshot().asked):
        told += after.handle(UpdateAccepted(device, starts[device]), 1001)
    assert CloseRound(2, 1) in told


def test_the_diagram_in_the_guide_is_the_transition_table() -> None:
    assert diagram(BufferedEngine.transitions) in (Path(__file__).parents[2] / "docs" / "rounds.md").read_text()
