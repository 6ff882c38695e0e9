"""The schedule of faults: a pure function of its seed, that strikes everybody and never one party twice at once."""

from collections import Counter

import pytest

from lab.chaos_plan import AGENTS, BROKER, BROKERS, COORDINATOR, COORDINATORS, LASTS, Kind, plan

DEVICES = ("a", "b", "c")


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    assert plan(7, 120, DEVICES) == plan(7, 120, DEVICES)
    assert plan(7, 120, DEVICES) != plan(8, 120, DEVICES)


@pytest.mark.parametrize("seed", range(30))
def test_what_strikes_one_party_does_not_overlap_and_ends_in_time(seed: int) -> None:
    faults = plan(seed, 200, DEVICES)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    free = dict.fromkeys((BROKER, COORDINATOR, *DEVICES), 0.0)
    for fault in faults:
        assert fault.at >= free[fault.party], "the party is still down"
        assert LASTS[fault.kind][0] <= fault.seconds <= LASTS[fault.kind][1]
        assert fault.at + fault.seconds <= 200.001
        free[fault.party] = fault.at + fault.seconds
        assert (fault.party == BROKER) == (fault.kind in BROKERS)
        assert fault.kind not in COORDINATORS or fault.party == COORDINATOR
        assert fault.kind not in AGENTS or fault.party in DEVICES


def test_every_kind_comes_before_any_comes_a_third_time() -> None:
    for seed in range(10):
        counts = Counter(fault.kind for fault in plan(seed, 600, DEVICES))
        assert counts.keys() == set(Kind)
        assert max(counts.values()) - min(counts.values()) <= 2  # one may have been left out for lack of time


def test_only_the_asked_kinds_come() -> None:
    assert {fault.kind for fault in plan(1, 100, DEVICES, [Kind.LINK_CUT])} == {Kind.LINK_CUT}
