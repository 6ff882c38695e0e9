"""Device twins: what presence changes, and the epoch rule."""

import pytest

from coordinator.events import DeviceAsleep, DeviceOffline, DeviceOnline
from coordinator.fleet import Fleet, Sleep
from shared.messages import Capabilities, Presence

ABLE = Capabilities(profile="phone", train=True)


def born(epoch: int, capabilities: Capabilities = ABLE) -> Presence:
    return Presence(online=True, epoch=epoch, capabilities=capabilities)


def died(epoch: int) -> Presence:
    return Presence(online=False, epoch=epoch)


def test_birth_and_death() -> None:
    fleet = Fleet()
    assert fleet.presence("a", born(1), 5.0) == DeviceOnline("a", ABLE)
    assert (fleet["a"].online, fleet["a"].last_seen, fleet["a"].capabilities) == (True, 5.0, ABLE)
    assert fleet.presence("a", died(1), 6.0) == DeviceOffline("a")
    assert not fleet["a"].online
    assert fleet["a"].capabilities == ABLE


def test_the_death_of_an_earlier_epoch_is_ignored() -> None:
    fleet = Fleet()
    fleet.presence("a", born(2), 0)
    assert fleet.presence("a", died(1), 1) is None
    assert fleet["a"].online


@pytest.mark.parametrize("late", [born(1), died(1)])
def test_nothing_of_an_earlier_epoch_comes_back(late: Presence) -> None:
    fleet = Fleet()
    fleet.presence("a", died(2), 0)
    assert fleet.presence("a", late, 1) is None
    assert not fleet["a"].online


def test_a_death_is_news_once_and_a_birth_always() -> None:
    fleet = Fleet()
    fleet.presence("a", born(1), 0)
    hot = Capabilities(profile="phone", train=False, reason="82 C")
    assert fleet.presence("a", born(1, hot), 1) == DeviceOnline("a", hot)
    assert fleet.presence("a", born(1, hot), 2) == DeviceOnline("a", hot)  # it reconnected: it gets its task again
    assert fleet.presence("a", died(1), 3) == DeviceOffline("a")
    assert fleet.presence("a", died(1), 4) is None


def test_a_death_of_a_device_that_was_never_seen_is_news_to_a_restarted_engine() -> None:
    assert Fleet().presence("a", died(3), 0) == DeviceOffline("a")


def sleeps(epoch: int, seconds: float = 100.0) -> Presence:
    return Presence(online=False, epoch=epoch, asleep_s=seconds, capabilities=ABLE)


@pytest.mark.parametrize(
    ("since", "left"),
    [
        (1_970.0, 70.0),
        (1_890.0, 0.0),  # it overslept
        (2_500.0, 100.0),  # the clock was set back meanwhile
    ],
)
def test_a_restart_knows_how_long_a_device_has_slept(since: float, left: float) -> None:
    """The clock of this start says 5 at 2000 seconds since 1970."""
    fleet = Fleet()
    fleet.recall({"a": Sleep(3, since), "gone": Sleep(1, 1_000.0)}, 1_995.0)
    assert fleet.presence("a", sleeps(3), 5.0) == (DeviceAsleep("a", left) if left else DeviceOffline("a"))
    assert fleet["a"].last_seen == 5.0 - (100.0 - left)
    assert fleet.presence("a", sleeps(3), 6.0) is None
    assert fleet.asleep(1_995.0) == {"a": Sleep(3, 2_000.0 - (100.0 - left)), "gone": Sleep(1, 1_000.0)}


def test_a_sleep_that_began_after_the_restart_is_a_new_one() -> None:
    fleet = Fleet()
    fleet.recall({"a": Sleep(3, 0.0)}, 0.0)
    assert fleet.presence("a", sleeps(4), 50.0) == DeviceAsleep("a", 100.0)
    fleet.presence("a", born(5), 160.0)
    assert fleet.asleep(0.0) == {}
