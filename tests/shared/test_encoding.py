"""What encodings lose and what not, on tensors; the bytes that they make are in test_encoded_payloads."""

import math
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.config import TransferSettings
from shared.encoding import LIKED, SHARE, Encoding, choose, decoded, encode
from shared.profiles import Link
from shared.tensors import Array, Subnet

LOSSY = [Encoding.FLOAT16, Encoding.INT8, Encoding.TOPK]
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
matrices = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=24), elements=finite)
long_rows = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(16, 70)), elements=finite)


def read(array: Array, encoding: Encoding) -> Array:
    """What a receiver reads of one tensor."""
    return decoded(Subnet({"a": array}), encoding).tensors["a"]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


# --- who takes what -------------------------------------------------------------------------------------------------


def test_the_first_that_both_know_is_taken() -> None:
    assert choose(["int8", "float16"], ["float16", "int8"]) is Encoding.INT8
    assert choose(LIKED["wifi"], ["int8", "float32"]) is Encoding.INT8
    assert choose(["zip", "int8"], ["zip", "int8"]) is Encoding.INT8


@pytest.mark.parametrize(("wanted", "taken"), [([], []), (["int8"], []), ([], ["int8"]), (["zip"], ["zip"])])
def test_without_one_it_is_float32(wanted: list[str], taken: list[str]) -> None:
    assert choose(wanted, taken) is Encoding.FLOAT32


def test_every_kind_of_link_has_its_order_of_all_encodings() -> None:
    kinds = typing.get_args(Link.model_fields["kind"].annotation)
    assert set(LIKED) == set(kinds)
    for liked in LIKED.values():
        assert sorted(liked) == sorted(Encoding)
    assert {kind: liked[0].value for kind, liked in LIKED.items()} == {
        "loopback": "float32",
        "ethernet": "float32",
        "wifi": "float16",
        "lte": "int8",
        "lte-m": "topk",
        "nb-iot": "topk",
    }


# --- what is never touched ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", LOSSY)
@pytest.mark.parametrize(
    "array",
    [
        pytest.param(normal(64), id="one axis"),
        pytest.param(np.float32(0.1).reshape(()), id="no axis"),
        pytest.param(np.arange(64).reshape(2, 32), id="integers"),
        pytest.param(normal(2, 32).astype(np.float64), id="float64"),
        pytest.param(np.zeros((0, 32), np.float32), id="nothing"),
        pytest.param(np.array([[1.0] * 31 + [math.inf]], np.float32), id="infinite"),
        pytest.param(np.array([[1.0] * 31 + [math.nan]], np.float32), id="not a number"),
        pytest.param(np.full((1, 32), np.finfo(np.float32).max), id="at the end of float32"),
    ],
)
def test_what_is_not_quantized_is_the_very_same(array: Array, encoding: Encoding) -> None:
    assert encode(array, encoding).encoding is None
    assert read(array, encoding) is array


def test_float32_changes_nothing() -> None:
    array = normal(3, 32)
    assert read(array, Encoding.FLOAT32) is array


# --- float16 --------------------------------------------------------------------------------------------------------


@given(matrices)
def test_float16_is_within_half_a_unit_in_the_last_place_or_float32(array: Array) -> None:
    error = np.abs(read(array, Encoding.FLOAT16).astype(np.float64) - array)
    assert (error <= np.maximum(np.abs(array.astype(np.float64)) * 2.0**-11, 2.0**-25)).all()


@pytest.mark.parametrize(("largest", "coded"), [(65504.0, True), (65519.0, True), (65520.0, False), (1e30, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_would_overflow_in_float16_stays_float32(largest: float, coded: bool, sign: int) -> None:
    array = np.array([[0.1, sign * largest]], np.float32)
    assert (encode(array, Encoding.FLOAT16).encoding is Encoding.FLOAT16) is coded
    result = read(array, Encoding.FLOAT16)
    assert np.isfinite(result).all()
    assert result[0, 1] == sign * (65504.0 if coded else np.float32(largest))


# --- int8 -----------------------------------------------------------------------------------------------------------


def test_int8_by_hand() -> None:
    array = np.zeros((3, 16), np.float32)
    array[0, :6] = [127, -127, 0.5, 1.5, 2.5, -63.4]  # a scale of 1: halves go to the even number
    array[1, :3] = [254, 3, -1]  # a scale of 2
    result = read(array, Encoding.INT8)
    assert result[0, :6].tolist() == [127, -127, 0, 2, 2, -63]
    assert result[1, :3].tolist() == [254, 4, 0]  # 1.5 -> 2, -0.5 -> 0
    assert not result[2].any()


@given(long_rows)
def test_int8_is_within_half_a_step_of_its_row(array: Array) -> None:
    result = read(array, Encoding.INT8).astype(np.float64)
    step = np.abs(array).max(axis=1, keepdims=True).astype(np.float64) / 127
    assert (np.abs(result - array) <= step * (0.5 + 1e-4) + 2.0**-119).all()


def test_rows_too_short_for_a_scale_are_float16() -> None:
    assert encode(normal(8, 1, 3, 5), Encoding.INT8).encoding is Encoding.FLOAT16
    assert encode(normal(8, 1, 4, 4), Encoding.INT8).encoding is Encoding.INT8


@settings(max_examples=200)
@given(matrices, st.sampled_from([Encoding.FLOAT16, Encoding.INT8]))
def test_what_was_decoded_loses_nothing_more(array: Array, encoding: Encoding) -> None:
    once = read(array, encoding)
    assert read(once, encoding).tobytes() == once.tobytes()


@given(st.floats(2.0**-140, 2.0**127, width=32), st.integers(0, 2**32))
def test_int8_is_idempotent_at_every_magnitude(peak: float, seed: int) -> None:
    array = normal(4, 33, seed=seed)
    array *= np.float32(peak / max(np.abs(array).max(), 1))
    once = read(array, Encoding.INT8)
    assert read(once, Encoding.INT8).tobytes() == once.tobytes()


# --- top-k ----------------------------------------------------------------------------------------------------------


def kept_of(array: Array) -> Array:
    """Positions that top-k sends, by the plainest reading: sorted by size, the first of equals first."""
    flat = np.abs(array.reshape(-1).astype(np.float64))
    order = np.lexsort((np.arange(flat.size), -flat))[: math.ceil(SHARE * flat.size)]
    return np.sort(order[flat[order] > 0])


@given(matrices)
def test_topk_keeps_exactly_the_largest(array: Array) -> None:
    coded = encode(array, Encoding.TOPK)
    if coded.encoding is None:
        assert np.abs(array).max() > 3.4e38
        return
    gaps = coded.parts[1].reshape(4, -1).T.copy().view("<u4")[:, 0]
    np.testing.assert_array_equal(np.cumsum(gaps.astype(np.int64) + 1) - 1, kept_of(array))
    assert coded.kept == len(gaps)
    result = read(array, Encoding.TOPK).reshape(-1)
    kept = np.zeros(array.size, bool)
    kept[kept_of(array)] = True
    assert not result[~kept].any()
    step = np.abs(array).max().astype(np.float64) / 127
    assert (np.abs(result[kept] - array.reshape(-1)[kept].astype(np.float64)) <= step * (0.5 + 1e-4) + 2.0**-119).all()


def test_topk_by_hand() -> None:
    array = np.zeros((4, 10), np.float32)  # two of forty are kept
    array[1, 3], array[2, 2], array[3, 9] = -2.54, 1.0, 0.9
    result = read(array, Encoding.TOPK)
    assert np.flatnonzero(result).tolist() == [13, 22]
    np.testing.assert_allclose(result[[1, 2], [3, 2]], [-2.54, 1.0], rtol=1e-4)
    assert encode(np.zeros((4, 10), np.float32), Encoding.TOPK).kept == 0
    assert encode(np.ones((4, 10), np.float32), Encoding.TOPK).kept == 2


# --- in whole -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", LOSSY)
def test_neither_byte_order_nor_layout_in_memory_changes_what_is_read(encoding: Encoding) -> None:
    array = normal(6, 40)
    expected = read(array, encoding)
    for variant in (array.astype(">f4"), np.asfortranarray(array), np.repeat(array, 2, axis=1)[:, ::2]):
        assert read(variant, encoding).tobytes() == expected.tobytes()


@pytest.mark.parametrize("encoding", [Encoding.TOPK, Encoding.INT8])
def test_with_error_feedback_what_was_sent_converges_to_what_was_meant(encoding: Encoding) -> None:
    """The device adds to each update what encoding lost of the one before: sums then differ by the last loss alone."""
    target = normal(32, 64, scale=0.01)
    errors = {}
    for feedback in (True, False):
        lost = np.zeros_like(target)
        total = np.zeros(target.shape, np.float64)
        for rounds in range(1, 401):
            wanted = target + lost
            sent = read(wanted, encoding)
            if feedback:
                lost = wanted - sent
            total += sent
            errors[feedback, rounds] = float(np.linalg.norm(total / rounds - target) / np.linalg.norm(target))
    assert errors[True, 400] < errors[True, 100] / 3
    assert errors[True, 400] < 0.03
    assert errors[False, 400] > 0.7 * errors[False, 100]
    assert errors[False, 400] > 4 * errors[True, 400]


def test_the_setting_names_the_encodings_and_what_leaves_the_choice_to_the_link() -> None:
    names = typing.get_args(TransferSettings.model_fields["encoding"].annotation)
    assert set(names) == {"link", *Encoding}
