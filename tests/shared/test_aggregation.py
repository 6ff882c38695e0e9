"""The weighted mean of partial models, against values computed by hand and a naive reference."""

import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.aggregation import Aggregate, Overlap, Update, WeightedMean
from shared.channels import FIXED, ChannelLayout
from shared.codec import decode_payload, encode_payload
from shared.tensors import Array, Masks, Subnet, Tensors

FOUR = ChannelLayout(groups={"g": 4}, axes={"theta": (np.arange(4),)})
"""One tensor of four channels."""

NET = ChannelLayout(
    groups={"a": 4, "b": 3},
    axes={
        "conv1.weight": (np.arange(4), None, None, None),
        "conv1.bias": (np.arange(4),),
        "conv2.weight": (np.arange(3) + 4, np.arange(4), None, None),
        "fc.weight": (None, np.repeat(np.arange(3) + 4, 4)),
        "mixed.weight": (None, np.array([4, FIXED, 5, 6, FIXED])),
        "counts": (np.arange(4),),
    },
)
SHAPES = {
    "conv1.weight": (4, 2, 3, 3),
    "conv1.bias": (4,),
    "conv2.weight": (3, 4, 3, 3),
    "fc.weight": (5, 12),
    "mixed.weight": (2, 5),
    "fc.bias": (5,),
    "scale": (),
}


def mask(bits: str) -> npt.NDArray[np.bool_]:
    return np.array([bit == "1" for bit in bits])


def cut(layout: ChannelLayout, tensors: Tensors, held: Masks) -> Subnet:
    """What a device that holds these channels has of dense tensors."""

    def part(name: str, array: Array) -> Array:
        for axis, positions in enumerate(layout.index(name, held)):
            if positions is not None:
                array = np.take(array, positions, axis)
        return array

    return Subnet({name: part(name, array) for name, array in tensors.items()}, held)


def random_tensors(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}


def aggregated(updates: list[Update], previous: Tensors, overlap: Overlap = Overlap.ANY) -> Aggregate:
    accumulator = WeightedMean(NET, overlap=overlap)
    for update in updates:
        accumulator.add(update)
    return accumulator.result(previous)


# --- vectors --------------------------------------------------------------------------------------------------------

THETA = [[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
MASKS = ["1110", "1100", "1011"]
SAMPLES = [1.0, 1.0, 2.0]
UNIFORM = [1.0, 1.0, 1.0]
OWN_VALUES = [[1.0, 2, 3, 0], [5, 6, 0, 0], [9, 0, 11, 12]]


def devices_after(overlap: Overlap, weights: list[float]) -> list[list[float]]:
    """What each of the three devices holds after the round: global values where they are valid, else its own."""
    accumulator = WeightedMean(FOUR, overlap=overlap)
    for theta, bits, weight in zip(THETA, MASKS, weights, strict=True):
        dense = {"theta": np.array(theta, np.float32)}
        accumulator.add(Update(cut(FOUR, dense, {"g": mask(bits)}), weight))
    result = accumulator.result({"theta": np.full(4, 100.0, np.float32)})
    valid = np.ones(4, bool) if result.valid is None else result.valid["g"]
    return [
        np.where(mask(bits), np.where(valid, result.tensors["theta"], own), 0).tolist()
        for bits, own in zip(MASKS, OWN_VALUES, strict=True)
    ]


@pytest.mark.parametrize(
    ("overlap", "weights", "expected"),
    [
        (Overlap.ALL, UNIFORM, [[5, 2, 3, 0], [5, 6, 0, 0], [5, 0, 11, 12]]),
        (Overlap.ALL, SAMPLES, [[6, 2, 3, 0], [6, 6, 0, 0], [6, 0, 11, 12]]),
        (Overlap.ANY, UNIFORM, [[5, 4, 7, 0], [5, 4, 0, 0], [5, 0, 7, 12]]),
        (Overlap.ANY, SAMPLES, [[6, 4, 25 / 3, 0], [6, 4, 0, 0], [6, 0, 25 / 3, 12]]),
        (Overlap.AGREED, SAMPLES, [[6, 4, 25 / 3, 0], [6, 4, 0, 0], [6, 0, 25 / 3, 12]]),
    ],
)
def test_three_devices_with_three_subnetworks(
    overlap: Overlap, weights: list[float], expected: list[list[float]]
) -> None:
    np.testing.assert_allclose(devices_after(overlap, weights), expected, rtol=1e-6)


def test_the_vectors_tell_a_zero_filled_mean_apart() -> None:
    zero_filled = np.mean([np.where(mask(bits), theta, 0) for bits, theta in zip(MASKS, THETA, strict=True)], axis=0)
    np.testing.assert_allclose(zero_filled, [5, 8 / 3, 14 / 3, 4], rtol=1e-6)
    any_ = devices_after(Overlap.ANY, UNIFORM)
    assert any_[0] != zero_filled.tolist()
    assert not np.allclose(any_[0][:3], zero_filled[:3])


def test_overlap_all_names_the_units_that_everybody_held() -> None:
    accumulator = WeightedMean(FOUR, overlap=Overlap.ALL)
    for theta, bits in zip(THETA, MASKS, strict=True):
        accumulator.add(Update(cut(FOUR, {"theta": np.array(theta, np.float32)}, {"g": mask(bits)}), 1.0))
    result = accumulator.result({"theta": np.full(4, 100.0, np.float32)})
    assert result.valid is not None
    assert result.valid["g"].tolist() == [True, False, False, False]
    assert result.tensors["theta"].tolist() == [5, 100, 100, 100]


@pytest.mark.parametrize(
    ("masks", "alive"),
    [
        (["1000", "0010"], "1010"),
        (["0110"], "0110"),
        (["0110", "1111"], None),
        (["0110", None], None),
        ([None, "0110"], None),
        ([None], None),
        ([], None),
    ],
)
def test_overlap_agreed_names_the_units_that_somebody_held(masks: list[str | None], alive: str | None) -> None:
    for overlap in Overlap:
        accumulator = WeightedMean(FOUR, overlap=overlap)
        for weight, bits in enumerate(masks):  # also who weighs nothing holds something
            held = None if bits is None else {"g": mask(bits)}
            subnet = (
                Subnet({"theta": np.ones(4, np.float32)}) if held is None else cut(FOUR, {"theta": np.ones(4)}, held)
            )
            accumulator.add(Update(subnet, float(weight)))
        result = accumulator.result({"theta": np.zeros(4, np.float32)}).alive
        if overlap is not Overlap.AGREED or alive is None:
            assert result is None
        else:
            assert result is not None
            assert result["g"].tolist() == mask(alive).tolist()


# --- dense ----------------------------------------------------------------------------------------------------------


def test_without_masks_it_is_the_weighted_mean() -> None:
    updates = [
        Update(Subnet({"w": np.array(values, np.float32)}), weight)
        for values, weight in zip(THETA, SAMPLES, strict=True)
    ]
    accumulator = WeightedMean(None, overlap=Overlap.ANY)
    for update in updates:
        accumulator.add(update)
    result = accumulator.result({"w": np.zeros(4, np.float32)})
    assert result.tensors["w"].tolist() == [6, 7, 8, 9]
    assert result.valid is None


@pytest.mark.parametrize("overlap", list(Overlap))
@given(seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=5), weights=st.data())
@settings(max_examples=25)
def test_masks_that_hold_everything_are_fedavg_bit_for_bit(
    overlap: Overlap, seeds: list[int], weights: st.DataObject
) -> None:
    weighted = [(seed, weights.draw(st.floats(0.01, 1000))) for seed in seeds]
    previous = random_tensors(5000)
    masked = aggregated([Update(Subnet(random_tensors(s), NET.full()), w) for s, w in weighted], previous, overlap)
    dense = WeightedMean(None, overlap=Overlap.ANY)
    for seed, weight in weighted:
        dense.add(Update(Subnet(random_tensors(seed)), weight))
    assert masked.valid is None
    for name, array in dense.result(previous).tensors.items():
        assert array.tobytes() == masked.tensors[name].tobytes()


def test_counters_become_their_maximum() -> None:
    accumulator = WeightedMean(None, overlap=Overlap.ANY)
    for count in (3, 9, 7):
        accumulator.add(Update(Subnet({"n": np.array(count, np.int64), "flag": np.array([count > 8, False])}), 10.0))
    tensors = accumulator.result({"n": np.array(100, np.int64), "flag": np.array([False, False])}).tensors
    assert tensors["n"] == 9
    assert tensors["n"].dtype == np.int64
    assert tensors["flag"].tolist() == [True, False]


def test_partial_integers_become_the_maximum_of_those_that_hold_them() -> None:
    updates = [
        Update(cut(NET, {"counts": np.array([-5, 1, 2, 3], np.int64)}, {"a": mask("1100"), "b": mask("111")}), 1.0),
        Update(cut(NET, {"counts": np.array([-7, 8, 9, 9], np.int64)}, {"a": mask("1010"), "b": mask("111")}), 1.0),
    ]
    previous = {"counts": np.array([0, 0, 0, -1], np.int64)}
    assert aggregated(updates, previous).tensors["counts"].tolist() == [-5, 1, 9, -1]
    assert aggregated(updates, previous, Overlap.ALL).tensors["counts"].tolist() == [-5, 0, 0, -1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_keeps_its_type(dtype: type[np.floating]) -> None:
    accumulator = WeightedMean(None, overlap=Overlap.ANY)
    for value in (1.0, 2.0):
        accumulator.add(Update(Subnet({"w": np.full(3, value, dtype)}), 1.0))
    mean = accumulator.result({"w": np.zeros(3, dtype)}).tensors["w"]
    assert mean.dtype == dtype
    assert mean.tolist() == [1.5] * 3


# --- nothing to average ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", list(Overlap))
def test_without_weight_everything_stays(overlap: Overlap) -> None:
    previous = random_tensors(0)
    held = {"a": mask("1010"), "b": mask("110")}
    nothing = [Update(Subnet(random_tensors(1)), 0.0), Update(cut(NET, random_tensors(2), held), 0.0)]
    for updates in ([], nothing):
        for name, array in aggregated(updates, previous, overlap).tensors.items():
            np.testing.assert_array_equal(array, previous[name])


def test_where_nobody_holds_a_coordinate_the_previous_value_stays() -> None:
    held = {"a": mask("1000"), "b": mask("010")}
    previous = random_tensors(0)
    update = random_tensors(1)
    result = aggregated([Update(cut(NET, update, held), 3.0)], previous).tensors
    for name, array in result.items():
        assert np.isfinite(array).all()
        expected = previous[name].copy()
        inside = np.ones(expected.shape, bool)
        for axis, positions in enumerate(NET.index(name, held)):
            if positions is not None:
                shape = [1] * expected.ndim
                shape[axis] = -1
                inside &= np.isin(np.arange(expected.shape[axis]), positions).reshape(shape)
        expected[inside] = update[name][inside]
        np.testing.assert_allclose(array, expected, rtol=1e-6)


def test_disjoint_subnetworks_leave_each_other_alone() -> None:
    one, other = random_tensors(1), random_tensors(2)
    left, right = {"a": mask("1100"), "b": mask("100")}, {"a": mask("0011"), "b": mask("011")}
    updates = [Update(cut(NET, one, left), 5.0), Update(cut(NET, other, right), 1.0)]
    bias = aggregated(updates, random_tensors(0)).tensors["conv1.bias"]
    np.testing.assert_allclose(bias, [*one["conv1.bias"][:2], *other["conv1.bias"][2:]], rtol=1e-6)
    kept = aggregated(updates, random_tensors(0), Overlap.ALL)
    assert kept.valid is not None
    assert not kept.valid["a"].any()
    np.testing.assert_array_equal(kept.tensors["conv1.bias"], random_tensors(0)["conv1.bias"])


def test_a_tensor_that_nobody_sends_stays() -> None:
    previous = random_tensors(0)
    result = aggregated([Update(Subnet({"fc.bias": np.ones(5, np.float32)}), 1.0)], previous).tensors
    assert result["fc.bias"].tolist() == [1] * 5
    np.testing.assert_array_equal(result["fc.weight"], previous["fc.weight"])


def test_a_partial_update_needs_a_layout() -> None:
    update = Update(Subnet({"theta": np.ones(1, np.float32)}, {"g": mask("1000")}), 1.0)
    with pytest.raises(ValueError, match="layout"):
        WeightedMean(None, overlap=Overlap.ANY).add(update)


# --- against a reference --------------------------------------------------------------------------------------------


def reference(updates: list[tuple[Tensors, Masks, float]], previous: Tensors, overlap: Overlap) -> Tensors:
    """Coordinate by coordinate in float64."""
    result = {}
    for name, before in previous.items():
        total, weights, holders = np.zeros(before.shape), np.zeros(before.shape), np.zeros(before.shape)
        for tensors, held, weight in updates:
            here = np.ones(before.shape)
            units = np.concatenate([held["a"], held["b"], [True]])
            for axis, behind in enumerate(NET.axes.get(name, ())):
                if behind is not None:
                    here = np.moveaxis(np.moveaxis(here, axis, -1) * units[behind], -1, axis)
            total += weight * here * tensors[name]
            weights += weight * here
            holders += here
        averaged = (weights > 0) & (holders == len(updates) if overlap is Overlap.ALL else holders > 0)
        result[name] = np.where(averaged, total / np.where(weights > 0, weights, 1), before)
    return result


bits = st.integers(1, 15).map(lambda n: np.array([bool(n >> i & 1) for i in range(4)]))
holdings = st.tuples(bits, bits.map(lambda m: m[:3]).filter(np.any)).map(lambda pair: {"a": pair[0], "b": pair[1]})
cohorts = st.lists(
    st.tuples(st.integers(0, 10_000).map(random_tensors), holdings, st.floats(0.5, 500, width=32) | st.just(0.0)),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("overlap", list(Overlap))
@given(cohort=cohorts, order=st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_it_is_the_mean_over_holders_in_any_order(overlap: Overlap, cohort: list, order: object) -> None:  # type: ignore[type-arg]
    previous = random_tensors(77)
    expected = reference(cohort, previous, overlap)
    for _ in range(2):
        updates = [Update(cut(NET, tensors, held), weight) for tensors, held, weight in cohort]
        for name, array in aggregated(updates, previous, overlap).tensors.items():
            assert array.shape == SHAPES[name]
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)
        order.shuffle(cohort)  # type: ignore[attr-defined]


@given(cohort=cohorts, scale=st.sampled_from([0.001, 0.3, 7.0, 10_000.0]))
@settings(max_examples=30)
def test_only_the_ratio_of_weights_matters(cohort: list, scale: float) -> None:  # type: ignore[type-arg]
    previous = random_tensors(77)
    one = aggregated([Update(cut(NET, t, held), w) for t, held, w in cohort], previous)
    other = aggregated([Update(cut(NET, t, held), w * scale) for t, held, w in cohort], previous)
    for name in SHAPES:
        np.testing.assert_allclose(one.tensors[name], other.tensors[name], rtol=1e-4, atol=1e-5)


def test_many_rows_are_scattered_in_blocks() -> None:
    units = 300
    layout = ChannelLayout(groups={"g": units}, axes={"w": (np.arange(units), np.arange(units), None, None)})
    rng = np.random.default_rng(0)
    held = {"g": rng.random(units) < 0.7}
    dense = {"w": rng.normal(size=(units, units, 3, 3)).astype(np.float32)}
    accumulator = WeightedMean(layout, overlap=Overlap.ANY)
    accumulator.add(Update(cut(layout, dense, held), 2.0))
    accumulator.add(Update(Subnet(dense), 1.0))
    result = accumulator.result({"w": np.zeros_like(dense["w"])}).tensors["w"]
    np.testing.assert_allclose(result, dense["w"], rtol=1e-5)


# --- what it leaves alone -------------------------------------------------------------------------------------------


def test_read_only_updates_are_taken_silently_and_nothing_is_written_to() -> None:
    previous = random_tensors(0)
    held = {"a": mask("1010"), "b": mask("110")}
    buffers = [
        encode_payload(Subnet(random_tensors(1)), run="r", round=1),
        encode_payload(cut(NET, random_tensors(2), held), run="r", round=1),
    ]
    copies = [bytes(bytearray(buffer)) for buffer in buffers]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updates = [Update(decode_payload(buffer, limit=1 << 20).subnet, 1.0) for buffer in buffers]
        aggregated(updates, previous)
    assert buffers == copies
    for name, array in random_tensors(0).items():
        np.testing.assert_array_equal(previous[name], array)
    assert updates[1].subnet.held is not None
    np.testing.assert_array_equal(updates[1].subnet.held["a"], mask("1010"))
