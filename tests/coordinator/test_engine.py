"""The round engine by hand: what it answers to each story of a round."""

import pytest

from coordinator.cohort import Needs
from coordinator.engine import RoundEngine
from coordinator.events import (
    AbandonRound,
    Action,
    CloseRound,
    Command,
    DeviceAsleep,
    DeviceFailed,
    DeviceOffline,
    DeviceOnline,
    Finish,
    OpenPersonalization,
    OpenRound,
    Phase,
    Prepared,
    Quarantined,
    Released,
    Reported,
    Snapshot,
    Tick,
    UpdateAccepted,
    Verdict,
)
from coordinator.transitions import diagram
from shared.config_rounds import RoundSettings
from shared.messages import Capabilities

ABLE = Capabilities(profile="container", train=True, memory_mib=512)


def engine(template: Action | None = None, **settings: object) -> RoundEngine:
    chosen = {"count": 1, "quorum": 2, "min_devices": 2, "deadline_s": 100, "personalize_deadline_s": 50} | settings
    return RoundEngine("run", RoundSettings.model_validate(chosen), seed=1, template=template)


def online(rounds: RoundEngine, *devices: str, now: float = 0) -> list[Command]:
    return [command for device in devices for command in rounds.handle(DeviceOnline(device, ABLE), now)]


def answer(rounds: RoundEngine, *devices: str, now: float = 1) -> list[Command]:
    return [c for device in devices for c in rounds.handle(UpdateAccepted(device, rounds.round), now)]


def test_a_run_from_gathering_to_finished() -> None:
    rounds = engine(count=2)
    assert online(rounds, "a") == []
    assert online(rounds, "b") == [OpenRound(1, 1, ("a", "b"))]
    assert rounds.next_deadline(0) == 100
    assert answer(rounds, "a") == []
    assert answer(rounds, "b", now=7) == [CloseRound(1, 1), OpenRound(2, 1, ("a", "b"))]
    assert rounds.next_deadline(7) == 107
    assert answer(rounds, "b", "a", now=9) == [CloseRound(2, 1), OpenPersonalization(3)]
    assert rounds.next_deadline(9) == 59
    assert rounds.handle(Reported("a", 3), 10) == []
    assert rounds.handle(Reported("b", 3), 11) == [Finish(("a", "b"), (), ())]
    assert rounds.phase is Phase.FINISHED
    assert rounds.next_deadline(11) is None
    assert online(rounds, "c") == []


def test_what_needs_the_template_begins_when_it_is_made_and_its_time_counts_from_then() -> None:
    rounds = engine("personalize")
    online(rounds, "a", "b")
    assert answer(rounds, "a", "b") == [CloseRound(1, 1)]
    assert rounds.handle(Tick(), 1e6) == []
    assert rounds.next_deadline(1e6) is None
    assert rounds.wanted("a") is None
    assert rounds.judge("a", "run", 2) is Verdict.NOT_IN_COHORT
    assert rounds.handle(Prepared(), 2e6) == [OpenPersonalization(2)]
    assert rounds.wanted("a") == "personalize"
    assert rounds.due("a") == 2e6 + 50
    measuring = engine("train")
    assert online(measuring, "a", "b") == []
    assert measuring.handle(Prepared(), 1) == [OpenRound(1, 1, ("a", "b"))]


def test_the_deadline_closes_with_quorum() -> None:
    rounds = engine(min_devices=3)
    assert online(rounds, "a", "b", "c") == [OpenRound(1, 1, ("a", "b", "c"))]
    assert answer(rounds, "a", "c") == []
    assert rounds.handle(Tick(), 99.9) == []
    assert rounds.handle(Tick(), 100) == [CloseRound(1, 1), OpenPersonalization(2)]


def test_the_deadline_without_quorum_asks_the_same_round_again_and_a_stragglers_answer_counts() -> None:
    rounds = engine(cohort=2)
    online(rounds, "a", "b")
    online(rounds, "c")
    answer(rounds, "a")
    commands = rounds.handle(Tick(), 100)
    assert commands == [
        AbandonRound(1, 1, "deadline with 1 of 2 needed updates"),
        OpenRound(1, 2, ("c",)),  # a has answered, b had its turn
    ]
    assert rounds.judge("b", "run", 1) is Verdict.WELCOME
    assert rounds.wanted("b") == "train"
    assert answer(rounds, "b", now=101) == []  # c is still waited for
    assert answer(rounds, "c", now=102) == [CloseRound(1, 2), OpenPersonalization(2)]


def test_a_straggler_completes_the_quorum_while_nobody_else_is_there() -> None:
    rounds = engine()
    online(rounds, "a", "b")
    answer(rounds, "a")
    assert rounds.handle(DeviceOffline("b"), 5) == [
        AbandonRound(1, 1, "nobody left to wait for with 1 of 2 needed updates")
    ]
    assert rounds.phase is Phase.GATHERING
    assert answer(rounds, "b", now=6) == [CloseRound(1, 1), OpenPersonalization(2)]


def test_who_drops_off_is_not_waited_for_but_may_still_answer() -> None:
    rounds = engine(min_devices=4)
    online(rounds, "a", "b", "c", "d")
    answer(rounds, "a", "b")
    assert rounds.handle(DeviceOffline("c"), 2) == []
    assert answer(rounds, "c", now=3) == []
    assert rounds.handle(DeviceOffline("d"), 4) == [CloseRound(1, 1), OpenPersonalization(2)]


def test_enough_answers_close_the_round_and_who_is_slower_is_stale() -> None:
    rounds = engine(count=2, cohort=4, enough=3, min_devices=4)
    online(rounds, "a", "b", "c", "slow")
    assert answer(rounds, "a", "b") == []
    assert answer(rounds, "c") == [CloseRound(1, 1), OpenRound(2, 1, ("a", "b", "c", "slow"))]
    assert rounds.judge("slow", "run", 1) is Verdict.STALE
    assert rounds.wanted("slow") == "train"


def test_who_sleeps_is_waited_for_if_it_means_to_be_back_before_the_deadline() -> None:
    rounds = engine(min_devices=3)
    online(rounds, "a", "b", "c")
    assert rounds.handle(DeviceAsleep("c", 90), 5) == []
    assert rounds.wanted("c") == "train"
    assert answer(rounds, "a", "b", now=10) == []  # c is waited for
    assert rounds.handle(DeviceAsleep("c", 91), 20) == [CloseRound(1, 1), OpenPersonalization(2)]


def test_who_sleeps_is_asked_and_finds_its_task_when_it_is_back() -> None:
    rounds = engine(count=2)
    online(rounds, "a", "b")
    rounds.handle(DeviceAsleep("b", 60), 1)
    answer(rounds, "a", now=2)
    assert answer(rounds, "b", now=61) == [CloseRound(1, 1), OpenRound(2, 1, ("a", "b"))]  # it sleeps on till 61
    rounds.handle(DeviceAsleep("b", 60), 62)
    rounds.handle(Tick(), 161)  # without a quorum: asked again, but b has overslept
    assert rounds.cohort == ("a",) or rounds.phase is Phase.GATHERING
    assert online(rounds, "b", now=170) in ([], [OpenRound(2, 2, ("a", "b"))])
    assert rounds.wanted("b") == "train"


def test_of_a_sleeper_that_was_never_seen_awake_nothing_is_expected() -> None:
    rounds = engine()
    assert rounds.handle(DeviceAsleep("x", 1), 0) == []
    assert online(rounds, "a") == []
    assert online(rounds, "b") == [OpenRound(1, 1, ("a", "b"))]


def test_who_is_in_quarantine_is_neither_asked_nor_waited_for_nor_heard() -> None:
    rounds = engine(min_devices=3)
    online(rounds, "a", "b", "c")
    answer(rounds, "a")
    assert rounds.handle(Quarantined("c"), 2) == []
    assert rounds.judge("c", "run", 1) is Verdict.QUARANTINED
    assert rounds.wanted("c") is None
    rounds.handle(Quarantined("a"), 2)
    assert rounds.judge("a", "run", 1) is Verdict.DUPLICATE  # what was promised stands
    assert answer(rounds, "b")[0] == CloseRound(1, 1)
    assert rounds.handle(Reported("b", 2), 3) == [Finish(("b",), (), ("a", "c"))]


def test_who_is_released_is_asked_again() -> None:
    rounds = engine(count=2)
    online(rounds, "a", "b")
    rounds.handle(Quarantined("b"), 1)
    assert rounds.phase is Phase.COLLECTING
    rounds.handle(Released("b"), 2)
    assert rounds.wanted("b") == "train"
    assert answer(rounds, "a", "b")[0] == CloseRound(1, 1)


def test_who_returns_gets_its_task_again() -> None:
    rounds = engine(min_devices=3)
    online(rounds, "a", "b", "c")
    rounds.handle(DeviceOffline("a"), 1)
    answer(rounds, "b")
    assert online(rounds, "a", now=2) == []
    assert rounds.wanted("a") == "train"
    assert rounds.wanted("b") is None
    assert answer(rounds, "c", now=3) == []  # a is waited for again
    assert answer(rounds, "a", now=4)[0] == CloseRound(1, 1)


def test_who_joins_while_a_round_is_open_waits_for_the_next() -> None:
    rounds = engine(count=2)
    online(rounds, "a", "b")
    assert online(rounds, "c") == []
    assert rounds.wanted("c") is None
    assert rounds.judge("c", "run", 1) is Verdict.NOT_IN_COHORT
    assert answer(rounds, "c") == []
    assert answer(rounds, "a", "b") == [CloseRound(1, 1), OpenRound(2, 1, ("a", "b", "c"))]


def test_who_failed_is_asked_last_and_not_for_ever() -> None:
    rounds = engine(cohort=2)
    online(rounds, "a", "b")
    online(rounds, "c")
    rounds.handle(DeviceFailed("a", 1, "out_of_memory"), 1)
    assert rounds.wanted("a") is None
    again = rounds.handle(DeviceFailed("b", 1, "out_of_memory"), 2)
    assert again[0] == AbandonRound(1, 1, "nobody left to wait for with 0 of 2 needed updates")
    assert isinstance(again[1], OpenRound)
    assert "c" in again[1].cohort  # never failed, so first; one of the others fills the cohort
    assert again[1].attempt == 2


def test_a_fleet_that_always_fails_is_asked_twice_per_deadline() -> None:
    rounds = engine()
    attempts = online(rounds, "a", "b")
    for now in range(1, 50):
        for device in ("a", "b"):
            attempts += rounds.handle(DeviceFailed(device, 1, "broken"), now)
    assert [c.attempt for c in attempts if isinstance(c, OpenRound)] == [1, 2]
    assert rounds.phase is Phase.GATHERING
    due = rounds.next_deadline(50)
    assert due == 101  # the second attempt was opened at 1
    assert rounds.handle(Tick(), 100.5) == []
    assert rounds.handle(Tick(), due) == [OpenRound(1, 3, ("a", "b"))]


def test_a_late_tick_is_not_asked_for_for_ever() -> None:
    rounds = engine()
    online(rounds, "a", "b")
    for device in ("a", "b", "a", "b"):
        rounds.handle(DeviceFailed(device, 1, "broken"), 1)
    rounds.handle(DeviceOffline("a"), 2)
    assert rounds.handle(Tick(), 101) == []
    assert rounds.next_deadline(101) is None  # only a device can change anything now
    assert online(rounds, "a", now=102) == [OpenRound(1, 3, ("a", "b"))]


def test_what_cannot_train_is_not_asked_and_takes_part_again_when_it_can() -> None:
    rounds = RoundEngine("run", RoundSettings(count=1), needs=Needs(memory_mib=256, packet=4096))
    hot = Capabilities(profile="phone", train=False, reason="82 C")
    small = Capabilities(profile="phone", train=True, memory_mib=64)
    narrow = Capabilities(profile="phone", train=True, max_packet=2048)
    for device, capabilities in (("hot", hot), ("small", small), ("narrow", narrow)):
        assert rounds.handle(DeviceOnline(device, capabilities), 0) == []
    assert rounds.unfit(hot) == "82 C"
    assert "256 MiB" in rounds.unfit(small)
    assert "4096" in rounds.unfit(narrow)
    online(rounds, "a")
    assert rounds.handle(DeviceOnline("hot", ABLE), 1) == [OpenRound(1, 1, ("a", "hot"))]


def test_verdicts() -> None:
    rounds = engine(count=2)
    online(rounds, "a", "b")
    answer(rounds, "a")
    assert rounds.judge("a", "run", 1) is Verdict.DUPLICATE
    assert rounds.judge("b", "run", 1) is Verdict.WELCOME
    assert rounds.judge("b", "other", 1) is Verdict.FOREIGN_RUN
    assert rounds.judge("b", "run", 2) is Verdict.FUTURE
    assert rounds.judge("x", "run", 1) is Verdict.NOT_IN_COHORT
    answer(rounds, "b")
    assert rounds.round == 2
    assert rounds.judge("a", "run", 1) is Verdict.DUPLICATE  # accepted, and its receipt got lost
    assert rounds.judge("x", "run", 1) is Verdict.STALE


def personalizing(*others: str) -> RoundEngine:
    """a and b have closed the only round; the others were online, and in no cohort."""
    rounds = engine()
    online(rounds, "a", "b", *others)
    answer(rounds, "a", "b")
    assert rounds.phase is Phase.PERSONALIZING
    return rounds


def test_everybody_personalizes_also_who_was_in_no_cohort_and_who_comes_late() -> None:
    rounds = personalizing("c")
    assert {device: rounds.wanted(device) for device in "abc"} == dict.fromkeys("abc", "personalize")
    online(rounds, "late", now=5)
    assert rounds.wanted("late") == "personalize"
    for device in ("a", "late", "b"):
        assert rounds.handle(Reported(device, 2), 6) == []
    assert rounds.handle(Reported("c", 2), 7) == [Finish(("a", "b", "c", "late"), (), ())]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_who_is_away_is_waited_for_and_finds_its_task_when_it_is_back(when: str) -> None:
    rounds = engine()
    online(rounds, "a", "b", "c")
    if when == "before":
        rounds.handle(DeviceOffline("c"), 1)
    answer(rounds, "a", "b", now=4)
    if when == "meanwhile":
        rounds.handle(DeviceOffline("c"), 5)
    for device in "ab":
        assert rounds.handle(Reported(device, 2), 6) == []
    assert rounds.wanted("c") == "personalize"
    assert online(rounds, "c", now=30) == []
    assert rounds.wanted("c") == "personalize"
    assert rounds.handle(Reported("c", 2), 31) == [Finish(("a", "b", "c"), (), ())]


def test_the_personalization_waits_for_an_absent_fleet_until_its_deadline() -> None:
    rounds = engine()
    online(rounds, "a", "b")
    answer(rounds, "a")
    rounds.handle(DeviceOffline("a"), 2)
    rounds.handle(DeviceOffline("b"), 3)
    assert answer(rounds, "b", now=4)[-1] == OpenPersonalization(2)
    assert rounds.handle(Tick(), 53) == []
    assert rounds.handle(Tick(), 54) == [Finish((), (), ("a", "b"))]


def test_who_failed_to_personalize_is_not_waited_for() -> None:
    rounds = personalizing()
    assert rounds.handle(DeviceFailed("b", 2, "no_data"), 7) == []
    assert rounds.wanted("b") is None
    assert rounds.handle(Reported("a", 2), 8) == [Finish(("a",), ("b",), ())]
    assert rounds.judge("b", "run", 2) is Verdict.STALE


def test_who_failed_to_personalize_is_asked_again_when_it_announces_itself_and_not_for_ever() -> None:
    rounds = personalizing()
    asked = 0
    for now in range(1, 20):
        assert rounds.handle(DeviceFailed("b", 2, "out_of_memory"), now) == []
        assert rounds.wanted("b") is None
        assert online(rounds, "b", now=now) == []
        asked += rounds.wanted("b") == "personalize"
    assert asked == 1
    assert rounds.handle(Reported("a", 2), 20) == [Finish(("a",), ("b",), ())]


def test_a_second_chance_that_is_taken_counts() -> None:
    rounds = personalizing()
    rounds.handle(DeviceFailed("b", 2, "out_of_memory"), 1)
    online(rounds, "b", now=2)
    assert rounds.handle(Reported("a", 2), 3) == []  # b is waited for again
    assert rounds.handle(Reported("b", 2), 4) == [Finish(("a", "b"), (), ())]


def test_failures_of_the_rounds_do_not_count_in_the_personalization() -> None:
    rounds = engine(min_devices=3)
    online(rounds, "a", "b", "c")
    rounds.handle(DeviceFailed("c", 1, "broken"), 1)
    answer(rounds, "a", "b")
    assert rounds.phase is Phase.PERSONALIZING
    assert rounds.wanted("c") == "personalize"


def test_who_is_too_hot_to_personalize_is_waited_for_until_it_has_cooled_down() -> None:
    rounds = personalizing()
    hot = Capabilities(profile="phone", train=False, reason="82 C")
    for now in range(1, 6):  # as often as it takes: it is the device that says when
        assert rounds.handle(DeviceOnline("b", hot), now) == []
        assert rounds.wanted("b") is None
        assert rounds.handle(DeviceFailed("b", 2, "unhealthy"), now) == []  # the same thing again
        assert online(rounds, "b", now=now) == []
        assert rounds.wanted("b") == "personalize"
    assert rounds.handle(Reported("a", 2), 6) == []
    assert rounds.handle(Reported("b", 2), 7) == [Finish(("a", "b"), (), ())]


def test_what_never_could_train_is_neither_waited_for_nor_missed() -> None:
    rounds = engine()
    rounds.handle(DeviceOnline("display", Capabilities(profile="display", train=False)), 0)
    online(rounds, "a", "b")
    answer(rounds, "a", "b")
    assert rounds.wanted("display") is None
    rounds.handle(DeviceOffline("display"), 2)
    assert rounds.wanted("display") is None
    rounds.handle(Reported("a", 2), 3)
    assert rounds.handle(Reported("b", 2), 4) == [Finish(("a", "b"), (), ())]


def test_turns_go_round_and_the_seed_decides_among_equals() -> None:
    def cohorts(order: str) -> list[tuple[str, ...]]:
        rounds = engine(count=4, cohort=2, min_devices=6)
        opened = online(rounds, *order)
        for _ in range(3):
            opened += answer(rounds, *rounds.cohort)
        return [command.cohort for command in opened if isinstance(command, OpenRound)]

    chosen = cohorts("abcdef")
    assert chosen == cohorts("fdbeca")
    assert sorted(device for cohort in chosen[:3] for device in cohort) == list("abcdef")


@pytest.mark.parametrize("answered", [(), ("a",), ("a", "b")])
def test_a_restart_continues_the_same_attempt(answered: tuple[str, ...]) -> None:
    before = engine(min_devices=3)
    online(before, "a", "b", "c")
    after = engine(min_devices=3)
    after.restore(before.snapshot(), [(device, 1) for device in answered], now=1000)
    assert (after.phase, after.round, after.attempt, after.cohort) == (Phase.COLLECTING, 1, 1, ("a", "b", "c"))
    assert after.next_deadline(1000) == 1100
    assert after.answered() == set(answered)
    assert online(after, "a", now=1001) == []  # b and c are believed online until their presence tells otherwise
    for device in answered:
        assert after.judge(device, "run", 1) is Verdict.DUPLICATE
    last = [answer(after, device, now=1002) for device in "abc" if device not in answered]
    assert last[-1][0] == CloseRound(1, 1)


def test_a_restart_in_the_personalization_waits_for_the_same_devices() -> None:
    before = personalizing("c")
    before.handle(DeviceOffline("c"), 2)
    after = engine()
    after.restore(before.snapshot(), [("a", 2)], now=0)
    assert after.phase is Phase.PERSONALIZING
    assert after.next_deadline(0) == 50
    assert after.handle(Reported("b", 2), 1) == []  # c is away, and waited for
    assert after.wanted("c") == "personalize"
    assert after.handle(Reported("c", 2), 2) == [Finish(("a", "b", "c"), (), ())]


def test_the_empty_snapshot_is_a_fresh_engine() -> None:
    assert engine().snapshot() == Snapshot()


def test_the_diagram_shows_every_transition_with_its_command() -> None:
    text = diagram(RoundEngine.transitions)
    assert text.startswith("stateDiagram-v2\n    [*] --> gathering\n")
    assert text.count(" --> ") == len(RoundEngine.transitions) + 2
    assert "collecting --> gathering: enough answered or deadline, with quorum / CloseRound" in text
    assert "personalizing --> finished: all reported or deadline / Finish" in text
