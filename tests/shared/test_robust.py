"""Trimmed mean, median and clipped mean: against values computed by hand, a naive reference, and liars."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import robust
from shared.aggregation import Aggregate, Overlap, Rule, Update
from shared.channels import FIXED, ChannelLayout
from shared.config_rounds import AggregationSettings
from shared.pruning import take
from shared.robust import rule_of
from shared.tensors import Masks, Subnet, Tensors

FOUR = ChannelLayout(groups={"g": 4}, axes={"theta": (np.arange(4),)})
NET = ChannelLayout(
    groups={"a": 4, "b": 3},
    axes={
        "conv1.weight": (np.arange(4), None, None),
        "conv2.weight": (np.arange(3) + 4, np.arange(4), None),
        "fc.weight": (None, np.array([4, FIXED, 5, 6, FIXED])),
    },
)
SHAPES = {"conv1.weight": (4, 2, 3), "conv2.weight": (3, 4, 2), "fc.weight": (2, 5), "fc.bias": (2,), "scale": ()}
ROBUST = [{"rule": "trimmed-mean", "trim": 0.3}, {"rule": "median"}, {"rule": "clipped-mean"}]
REPEATED = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def mask(bits: str) -> npt.NDArray[np.bool_]:
    return np.array([bit == "1" for bit in bits])


def random_tensors(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}


def cut(layout: ChannelLayout, tensors: Tensors, held: Masks) -> Subnet:
    return Subnet(take(tensors, layout, held), held)


@pytest.fixture
def rule(tmp_path: Path) -> Callable[..., Rule]:
    def make(rule: str = "median", **fields: float) -> Rule:
        return rule_of(AggregationSettings.model_validate({"rule": rule, **fields}), tmp_path)

    return make


def combined(
    rule: Rule,
    updates: Sequence[Update],
    previous: Tensors,
    layout: ChannelLayout | None = None,
    overlap: Overlap = Overlap.ANY,
) -> Aggregate:
    accumulator = rule(layout, overlap=overlap)
    for update in updates:
        accumulator.add(update)
    return accumulator.result(previous)


def vectors(rows: Sequence[Sequence[float]], weights: Sequence[float] | None = None, dtype: str = "f4") -> list[Update]:
    return [
        Update(Subnet({"w": np.array(row, dtype)}), weight)
        for row, weight in zip(rows, weights or [1.0] * len(rows), strict=True)
    ]


def held(rows: Sequence[Sequence[float]], masks: Sequence[str], weights: Sequence[float] | None = None) -> list[Update]:
    return [
        Update(cut(FOUR, {"theta": np.array(row, np.float32)}, {"g": mask(bits)}), weight)
        for row, bits, weight in zip(rows, masks, weights or [1.0] * len(rows), strict=True)
    ]


# --- by hand --------------------------------------------------------------------------------------------------------


def test_the_trimmed_mean_leaves_out_its_share_at_both_ends(rule: Callable[..., Rule]) -> None:
    updates = vectors([[1, 50], [2, 40], [3, 30], [4, 20], [1e9, -1e9]])
    zero = {"w": np.zeros(2, np.float32)}
    assert combined(rule("trimmed-mean", trim=0.2), updates, zero).tensors["w"].tolist() == [3, 30]
    assert combined(rule("trimmed-mean", trim=0.4), updates, zero).tensors["w"].tolist() == [3, 30]
    assert combined(rule("trimmed-mean", trim=0.19), updates[:4], zero).tensors["w"].tolist() == [2.5, 35]


@pytest.mark.parametrize(("trim", "count", "left_out"), [(0.2, 5, 1), (0.2, 4, 0), (0.29, 100, 29), (0.1, 30, 3)])
def test_so_many_are_left_out(trim: float, count: int, left_out: int) -> None:
    assert robust.share(trim)(count) == left_out


def test_the_median_of_even_and_odd_numbers(rule: Callable[..., Rule]) -> None:
    zero = {"w": np.zeros(2, np.float32)}
    odd, even = vectors([[1, 9], [5, 7], [100, -3]]), vectors([[1, 9], [5, 7], [100, -3], [7, 8]])
    assert combined(rule("median"), odd, zero).tensors["w"].tolist() == [5, 7]
    assert combined(rule("median"), even, zero).tensors["w"].tolist() == [6, 7.5]
    assert combined(rule("median"), even[:2], zero).tensors["w"].tolist() == [3, 8]


def test_what_updates_say_that_they_weigh_moves_neither(rule: Callable[..., Rule]) -> None:
    rows, zero = [[1.0], [2], [3], [4], [90]], {"w": np.zeros(1, np.float32)}
    for one in (rule("median"), rule("trimmed-mean")):
        claimed = combined(one, vectors(rows, [1, 1, 1, 1, 1e9]), zero).tensors["w"].tolist()
        assert claimed == combined(one, vectors(rows), zero).tensors["w"].tolist() == [3]


def test_a_median_over_those_that_hold_a_coordinate(rule: Callable[..., Rule]) -> None:
    """theta: 1 and 5 and 9; 2 and 6; 3 and 11; 12 alone."""
    updates = held([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]], ["1110", "1100", "1011"])
    previous = {"theta": np.full(4, 100, np.float32)}
    found = combined(rule("median"), updates, previous, FOUR)
    assert found.tensors["theta"].tolist() == [5, 4, 7, 12]
    assert found.exposed == 0.75, "only of the first coordinate, three are there"
    every = combined(rule("median"), updates, previous, FOUR, Overlap.ALL)
    assert every.tensors["theta"].tolist() == [5, 100, 100, 100]
    assert every.valid is not None
    assert every.valid["g"].tolist() == mask("1000").tolist()
    assert every.exposed == 0


def test_a_trimmed_mean_over_those_that_hold_a_coordinate(rule: Callable[..., Rule]) -> None:
    """Of four holders a quarter is one at either end; of three it is none."""
    rows = [[1, 1, 0, 0], [2, 2, 2, 0], [4, 4, 4, 0], [99, 99, 99, 0]]
    found = combined(
        rule("trimmed-mean", trim=0.25),
        held(rows, ["1100", "1110", "1110", "1010"]),
        {"theta": np.full(4, -1, np.float32)},
        FOUR,
        Overlap.AGREED,
    )
    np.testing.assert_allclose(found.tensors["theta"], [3, 7 / 3, 35, -1], rtol=1e-6)
    assert found.alive is not None
    assert found.alive["g"].tolist() == mask("1110").tolist()
    assert found.exposed == pytest.approx(2 / 3)


def test_a_clipped_mean_shortens_what_went_too_far(rule: Callable[..., Rule]) -> None:
    """From (1, 1): by (3, 4), norm 5; by (0, 1); by (600, -800), norm 1000."""
    updates = vectors([[4, 5], [1, 2], [601, -799]], [1, 2, 1])
    previous = {"w": np.ones(2, np.float32)}
    one = combined(rule("clipped-mean", clip=1.0), updates, previous).tensors["w"]
    np.testing.assert_allclose(one, [1 + (0.6 + 0 + 0.6) / 4, 1 + (0.8 + 2 - 0.8) / 4], rtol=1e-6)
    median = combined(rule("clipped-mean"), updates, previous).tensors["w"]
    np.testing.assert_allclose(median, [1 + (3 + 0 + 3) / 4, 1 + (4 + 2 - 4) / 4], rtol=1e-6)


def test_a_clipped_mean_over_those_that_hold_a_coordinate(rule: Callable[..., Rule]) -> None:
    """Norms: 5 (of what it holds), 1. Clipped to 1, the first moves by .6 and .8."""
    updates = held([[3, 4, 900, 900], [9, 1, 9, 9]], ["1100", "0100"], [1, 3])
    previous = {"theta": np.array([0, 0, 7, 7], np.float32)}
    found = combined(rule("clipped-mean", clip=1.0), updates, previous, FOUR).tensors["theta"]
    np.testing.assert_allclose(found, [0.6, (0.8 + 3) / 4, 7, 7], rtol=1e-6)
    every = combined(rule("clipped-mean", clip=1.0), updates, previous, FOUR, Overlap.ALL).tensors["theta"]
    np.testing.assert_allclose(every, [0, (0.8 + 3) / 4, 7, 7], rtol=1e-6)


def test_two_cannot_be_told_apart_by_their_own_median(rule: Callable[..., Rule]) -> None:
    two, three = vectors([[1], [9]]), vectors([[1], [9], [5]])
    zero = {"w": np.zeros(1, np.float32)}
    assert combined(rule("clipped-mean"), two, zero).exposed == 1
    assert combined(rule("clipped-mean"), three, zero).exposed == 0
    assert combined(rule("clipped-mean", clip=1.0), two, zero).exposed == 0


# --- counters and dtypes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", ROBUST)
def test_one_counter_does_not_decide(rule: Callable[..., Rule], fields: dict[str, float]) -> None:
    """Counters of a BatchNorm: the lower median, also of those that hold it, and never what only one says."""
    layout = ChannelLayout(groups={"g": 2}, axes={"counts": (np.arange(2),)})
    previous = {"n": np.array(0), "counts": np.array([-1, -1]), "flag": np.array([True])}
    updates = []
    for count, bits in ((4, "11"), (6, "11"), (8, "01"), (2**63 - 1, "11")):
        dense = {"n": np.array(count), "counts": np.array([count, count]), "flag": np.array([count > 6])}
        updates.append(Update(cut(layout, dense, {"g": mask(bits)}), 1.0))
    tensors = combined(rule(**fields), updates, previous, layout).tensors
    assert tensors["n"] == 6
    assert tensors["n"].dtype == np.int64
    assert tensors["counts"].tolist() == [4, 6]
    assert tensors["flag"].tolist() == [False]
    assert tensors["flag"].dtype == np.bool_


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("fields", ROBUST)
def test_every_float_keeps_its_type(rule: Callable[..., Rule], fields: dict[str, float], dtype: str) -> None:
    found = combined(rule(**fields), vectors([[1.5], [1.5], [1.5]], dtype=dtype), {"w": np.zeros(1, dtype)})
    assert found.tensors["w"].dtype == np.dtype(dtype)
    assert found.tensors["w"].tolist() == [1.5]


def test_doubles_are_not_rounded(rule: Callable[..., Rule]) -> None:
    exact = 1 + 2.0**-50
    found = combined(rule("median"), vectors([[1], [exact], [2]], dtype="f8"), {"w": np.zeros(1)})
    assert found.tensors["w"].tolist() == [exact]


# --- properties -----------------------------------------------------------------------------------------------------

bits = st.integers(1, 15).map(lambda n: np.array([bool(n >> i & 1) for i in range(4)]))
holdings = st.tuples(bits, bits.map(lambda m: m[:3]).filter(np.any)).map(lambda pair: {"a": pair[0], "b": pair[1]})
cohorts = st.lists(
    st.tuples(st.integers(0, 10_000).map(random_tensors), holdings, st.floats(0.5, 500, width=32)),
    min_size=1,
    max_size=7,
)


def reference(cohort: list[tuple[Tensors, Masks, float]], previous: Tensors, overlap: Overlap, rule: str) -> Tensors:
    """Coordinate by coordinate, one number after the other."""
    everything = {name: np.ones(array.shape, bool) for name, array in previous.items()}
    holds = []
    for _, masks, _ in cohort:
        inside = {name: np.zeros(array.shape, bool) for name, array in previous.items()}
        for name, place in inside.items():
            index = NET.index(name, masks)
            full = [np.arange(n) for n in place.shape]
            chosen = [f if i is None else i for f, i in zip(full, index or [None] * len(full), strict=True)]
            place[np.ix_(*chosen) if chosen else ()] = everything[name][np.ix_(*chosen) if chosen else ()]
        holds.append(inside)
    norms = [
        sum(float(((t[n].astype(float) - previous[n])[h[n]] ** 2).sum()) for n in previous) ** 0.5
        for (t, _, _), h in zip(cohort, holds, strict=True)
    ]
    clip = float(np.median(norms))
    result = {name: array.astype(np.float64) for name, array in previous.items()}
    for name, before in previous.items():
        for at in np.ndindex(before.shape):
            here = [i for i, inside in enumerate(holds) if inside[name][at]]
            if not here or (overlap is Overlap.ALL and len(here) < len(cohort)):
                continue
            values = sorted(float(cohort[i][0][name][at]) for i in here)
            if rule == "median":
                result[name][at] = np.median(values)
            elif rule == "trimmed-mean":
                trim = int(0.3 * len(values))
                result[name][at] = np.mean(values[trim : len(values) - trim])
            else:
                moved = sum(
                    cohort[i][2] * min(1, clip / (norms[i] or 1)) * (float(cohort[i][0][name][at]) - before[at])
                    for i in here
                )
                result[name][at] = before[at] + moved / sum(cohort[i][2] for i in here)
    return result


@pytest.mark.parametrize("overlap", list(Overlap))
@pytest.mark.parametrize("fields", ROBUST, ids=lambda fields: str(fields["rule"]))
@given(cohort=cohorts, order=st.randoms(use_true_random=False))
@REPEATED
def test_it_is_the_rule_over_holders_in_any_order(
    rule: Callable[..., Rule], fields: dict[str, float], overlap: Overlap, cohort: list, order: object
) -> None:  # type: ignore[type-arg]
    previous = random_tensors(77)
    expected = reference(cohort, previous, overlap, str(fields["rule"]))
    for _ in range(2):
        updates = [Update(cut(NET, tensors, masks), weight) for tensors, masks, weight in cohort]
        for name, array in combined(rule(**fields), updates, previous, NET, overlap).tensors.items():
            assert array.shape == SHAPES[name]
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
        order.shuffle(cohort)  # type: ignore[attr-defined]


@pytest.mark.parametrize("fields", ROBUST, ids=lambda fields: str(fields["rule"]))
@given(seed=st.integers(0, 1000), count=st.integers(1, 9))
@REPEATED
def test_equal_updates_are_what_comes_out(
    rule: Callable[..., Rule], fields: dict[str, float], seed: int, count: int
) -> None:
    tensors, previous = random_tensors(seed), random_tensors(77)
    found = combined(rule(**fields), [Update(Subnet(tensors), 3.0)] * count, previous, NET).tensors
    for name, array in tensors.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fields", ROBUST[:2], ids=lambda fields: str(fields["rule"]))
@given(seed=st.integers(0, 1000), count=st.integers(3, 12), lie=st.sampled_from([1e30, -1e30, 1e3]), data=st.data())
@REPEATED
def test_fewer_liars_than_the_rule_bears_never_move_it_out_of_what_the_honest_say(
    rule: Callable[..., Rule], fields: dict[str, float], seed: int, count: int, lie: float, data: st.DataObject
) -> None:
    borne = int(0.3 * count + 1e-9) if fields["rule"] == "trimmed-mean" else (count - 1) // 2
    liars = data.draw(st.integers(0, borne))
    rng = np.random.default_rng(seed)
    honest = rng.normal(size=(count - liars, 20)).astype(np.float32)
    lies = np.where(rng.random((liars, 20)) < 0.8, lie, 0).astype(np.float32)
    updates = vectors(np.concatenate([lies, honest]).tolist(), [1e6] * liars + [1.0] * len(honest))
    found = combined(rule(**fields), updates, {"w": np.full(20, 77, np.float32)}).tensors["w"]
    assert (found >= honest.min(axis=0) - 1e-6).all()
    assert (found <= honest.max(axis=0) + 1e-6).all()


def test_one_liar_more_than_the_median_bears_moves_it(rule: Callable[..., Rule]) -> None:
    """Or the test above could not fail."""
    updates = vectors([[0], [1], [1e30], [1e30]])
    assert combined(rule("median"), updates, {"w": np.zeros(1, np.float32)}).tensors["w"][0] > 1e29


@given(lie=st.sampled_from([1e30, -1e30]))
@REPEATED
def test_a_liar_moves_a_clipped_mean_by_its_share_of_the_clip(rule: Callable[..., Rule], lie: float) -> None:
    previous = {"w": np.zeros(16, np.float32)}
    updates = vectors([[0.0] * 16] * 9 + [[lie] * 16])
    found = combined(rule("clipped-mean", clip=2.0), updates, previous).tensors["w"]
    np.testing.assert_allclose(np.linalg.norm(found), 0.2, rtol=1e-5)


# --- blocks, files, nothing to do -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", ROBUST)
def test_blocks_do_not_show(
    rule: Callable[..., Rule], fields: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = [(random_tensors(seed), {"a": mask("1110"), "b": mask("011")}) for seed in range(5)]
    updates = [Update(cut(NET, tensors, masks), 2.0) for tensors, masks in cohort]
    updates.append(Update(Subnet(random_tensors(9)), 1.0))
    whole = combined(rule(**fields), updates, random_tensors(77), NET).tensors
    monkeypatch.setattr(robust, "BLOCK_BYTES", 3 * 6 * 4)
    for name, array in combined(rule(**fields), updates, random_tensors(77), NET).tensors.items():
        assert array.tobytes() == whole[name].tobytes()


@pytest.mark.parametrize("fields", ROBUST)
def test_nothing_is_left_on_the_disk_and_no_descriptor(
    rule: Callable[..., Rule], fields: dict[str, float], tmp_path: Path
) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    combined(rule(**fields), vectors([[1, 2]] * 50), {"w": np.zeros(2, np.float32)})
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fields", ROBUST)
def test_without_updates_and_without_elements_everything_stays(
    rule: Callable[..., Rule], fields: dict[str, float]
) -> None:
    previous = {"w": np.arange(3, dtype=np.float32), "none": np.zeros((0, 4), np.float32)}
    for updates in ([], [Update(Subnet({"none": previous["none"]}), 1.0)]):
        found = combined(rule(**fields), updates, previous)
        assert found.exposed == 0
        for name, array in previous.items():
            np.testing.assert_array_equal(found.tensors[name], array)


@pytest.mark.parametrize("fields", ROBUST)
def test_what_is_read_only_stays_as_it_is(rule: Callable[..., Rule], fields: dict[str, float]) -> None:
    rows = np.arange(9, dtype=np.float32).reshape(3, 3)
    rows.flags.writeable = False
    previous = {"w": np.zeros(3, np.float32)}
    previous["w"].flags.writeable = False
    combined(rule(**fields), [Update(Subnet({"w": row}), 1.0) for row in rows], previous)
    assert previous["w"].tolist() == [0, 0, 0]
