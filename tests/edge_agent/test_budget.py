"""The budget of a metered link: what it forgives, what it remembers, and what no clock can talk it into."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.budget import DAY_S, Budget, Moment, Spent, advanced, now

MIB = 2**20
TODAY = 20_000


class Clock:
    def __init__(self, day: int = TODAY, up_s: float = 100.0, boot: str = "one") -> None:
        self.moment = Moment(day, up_s, boot)

    def set(self, day: int, up_s: float, boot: str = "one") -> None:
        self.moment = Moment(day, up_s, boot)

    def __call__(self) -> Moment:
        return self.moment


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(folder: Path, clock: Clock, daily_mib: float = 10) -> Budget:
    return Budget(folder / "budget", daily_mib, clock)


def test_what_is_spent_is_gone_until_the_day_turns(tmp_path: Path, clock: Clock) -> None:
    budget = make(tmp_path, clock)
    assert budget.left == 10 * MIB
    assert budget.problem() == ""
    budget.spend(9 * MIB)
    assert budget.fits(MIB)
    assert not budget.fits(MIB + 1)
    assert "1.0 of the day's 10 MiB are left" in budget.problem()
    assert "renewed at 00:00 UTC" in budget.problem()
    clock.set(TODAY + 1, 200)
    assert budget.left == 10 * MIB
    assert budget.problem() == "", "what was refused yesterday may be asked again"


def test_a_finished_update_may_go_beyond_it(tmp_path: Path, clock: Clock) -> None:
    budget = make(tmp_path, clock)
    budget.spend(12 * MIB)
    assert budget.left == -2 * MIB
    assert budget.problem().startswith("0.0 of")
    assert not budget.fits(1)


def test_what_is_more_than_a_whole_day_names_the_setting(tmp_path: Path, clock: Clock) -> None:
    budget = make(tmp_path, clock)
    assert not budget.fits(11 * MIB)
    assert "raise link.daily_mib" in budget.problem()


def test_a_restart_renews_nothing(tmp_path: Path, clock: Clock) -> None:
    budget = make(tmp_path, clock)
    budget.spend(7 * MIB)
    budget.save()
    clock.set(TODAY, 5, "two")
    assert make(tmp_path, clock).left == 3 * MIB


def test_a_kill_loses_at_most_a_hundredth(tmp_path: Path, clock: Clock) -> None:
    budget = make(tmp_path, clock)
    for _ in range(7000):
        budget.spend(1024)
    assert make(tmp_path, clock).left <= 10 * MIB - 7000 * 1024 + 10 * MIB // 100


def test_few_writes_for_many_packets(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    monkeypatch.setattr("edge_agent.budget.atomic_write", lambda path, data: writes.append(data))
    budget = make(tmp_path, clock)
    for _ in range(10_000):
        budget.spend(1024)
    assert 90 <= len(writes) <= 110


def test_a_damaged_file_counts_as_used_up(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "budget").write_bytes(b"rotten")
    assert make(tmp_path, clock).left == 0
    clock.set(TODAY + 1, 200)
    assert make(tmp_path, clock).left == 10 * MIB


def test_a_clock_that_starts_in_1970_at_every_boot_renews_nothing(tmp_path: Path, clock: Clock) -> None:
    budget = make(tmp_path, clock)
    budget.spend(9 * MIB)
    budget.save()
    for boot in range(50):
        clock.set(0, 5, f"boot {boot}")
        budget = make(tmp_path, clock)
        assert budget.left == MIB
        clock.set(TODAY, 60, f"boot {boot}")  # the network has told the time
        assert budget.left == MIB
        budget.save()


def test_a_clock_from_the_future_locks_for_no_longer_than_a_day_of_uptime(tmp_path: Path, clock: Clock) -> None:
    clock.set(TODAY + 3650, 100)
    budget = make(tmp_path, clock)
    budget.spend(10 * MIB)
    clock.set(TODAY, 100)
    assert budget.left == 0
    clock.set(TODAY, 100 + DAY_S - 1)
    assert budget.left == 0
    clock.set(TODAY + 1, 100 + DAY_S)
    assert budget.left == 10 * MIB
    budget.spend(MIB)
    clock.set(TODAY + 2, 200 + DAY_S)
    assert budget.left == 10 * MIB, "it goes by the clock again"


def test_a_clock_that_stands_still_is_no_lock(tmp_path: Path, clock: Clock) -> None:
    budget = make(tmp_path, clock)
    budget.spend(10 * MIB)
    clock.set(TODAY, 100 + DAY_S)
    assert budget.left == 10 * MIB


moments = st.builds(
    Moment, day=st.integers(0, TODAY), up_s=st.floats(0, 1000), boot=st.sampled_from(["one", "two", "three"])
)


@given(st.lists(moments, max_size=40))
def test_no_order_of_clocks_up_to_today_renews_today(seen: list[Moment]) -> None:
    """However the clock jumps below a day that it has shown, and however often the machine boots within the day."""
    spent = Spent(day=TODAY, used=5, up_s=0, boot="one")
    for moment in seen:
        spent = advanced(spent, moment)
    assert (spent.used, spent.number) == (5, 0)


def test_the_clocks_of_this_machine() -> None:
    first, second = now(), now()
    assert first.boot == second.boot != ""
    assert 0 < first.up_s <= second.up_s
    assert first.day >= 20_000
