"""Every lie that an update can tell is refused with its name, and nothing else is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from coordinator.admission import Admission, Bounds, distance, kept
from shared.channels import FIXED, ChannelLayout
from shared.codec import encode_payload
from shared.config_rounds import AdmissionSettings
from shared.encoding import Encoding
from shared.errors import RefusedUpdate
from shared.tensors import Masks, Subnet, Tensors

UNITS = 5
DENSE: dict[str, tuple[int, ...]] = {"conv.weight": (UNITS, 3), "conv.bias": (UNITS,), "head.weight": (2, UNITS)}
TENSORS: Tensors = {
    **{name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in DENSE.items()},
    "steps": np.array(7),
}
UNIT = np.arange(UNITS)
LAYOUT = ChannelLayout(
    {"conv": UNITS},
    {"conv.weight": (UNIT, None), "conv.bias": (UNIT,), "head.weight": (np.array([FIXED] * 2), UNIT)},
)
START = {"conv.weight": 1.0, "conv.bias": 2.0, "head.weight": 3.0}
"""The largest values that the round started from."""
HELD: Masks = {"conv": np.array([True, False, True, True, False])}
KEPT: Tensors = {
    "conv.weight": TENSORS["conv.weight"][[0, 2, 3]],
    "conv.bias": TENSORS["conv.bias"][[0, 2, 3]],
    "head.weight": TENSORS["head.weight"][:, [0, 2, 3]],
    "steps": TENSORS["steps"],
}


def admission(layout: ChannelLayout | None = LAYOUT, **changes: Any) -> Admission:
    fields = {"run": "run", "tensors": TENSORS, "layout": layout, "weighting": "samples", "limit": 100_000} | changes
    return Admission.of(**fields)


def payload(subnet: Subnet, **changes: Any) -> bytes:
    fields: Any = {"run": "run", "round": 3, "examples": 4, "weight": 4.0} | changes
    return encode_payload(subnet, **fields)


def examine(
    folder: Path, data: bytes, gate: Admission, examples: int = 10, start: Mapping[str, float] | None = None
) -> tuple[Tensors, Masks | None, float]:
    path = folder / "update"
    path.write_bytes(data)
    with gate.examine(path, 3, lambda _: START if start is None else start, examples) as (update, header):
        assert header.round == 3
        return {n: a.copy() for n, a in update.subnet.tensors.items()}, update.subnet.held, update.weight


def refusal(folder: Path, data: bytes, gate: Admission) -> str:
    with pytest.raises(RefusedUpdate) as refused:
        examine(folder, data, gate)
    assert str(refused.value)
    return refused.value.code


def test_a_dense_update_is_acceptable_with_and_without_a_layout(tmp_path: Path) -> None:
    for layout in (None, LAYOUT):
        tensors, held, weight = examine(tmp_path, payload(Subnet(TENSORS)), admission(layout))
        assert held is None
        assert weight == 4.0
        for name, array in TENSORS.items():
            np.testing.assert_array_equal(tensors[name], array)


def test_a_partial_update_is_acceptable_where_channels_may_go(tmp_path: Path) -> None:
    tensors, held, _ = examine(tmp_path, payload(Subnet(KEPT, HELD)), admission())
    assert held is not None
    np.testing.assert_array_equal(held["conv"], HELD["conv"])
    np.testing.assert_array_equal(tensors["head.weight"], KEPT["head.weight"])
    assert kept(held) == 0.6
    assert kept(None) == 1


def without(name: str) -> Tensors:
    return {key: array for key, array in TENSORS.items() if key != name}


def with_value(value: float, name: str = "conv.weight") -> Tensors:
    array = TENSORS[name].copy()
    array.flat[1] = value
    return TENSORS | {name: array}


LIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "another run": ("foreign_run", lambda: payload(Subnet(TENSORS), run="other")),
    "an old round": ("wrong_round", lambda: payload(Subnet(TENSORS), round=2)),
    "a later round": ("wrong_round", lambda: payload(Subnet(TENSORS), round=4)),
    "no examples": ("no_examples", lambda: payload(Subnet(TENSORS), examples=0, weight=0.0)),
    "more examples than it has": (
        "too_many_examples",
        lambda: payload(Subnet(TENSORS), examples=11, weight=11.0),
    ),
    "more weight than examples": ("wrong_weight", lambda: payload(Subnet(TENSORS), weight=400.0)),
    "no weight": ("wrong_weight", lambda: payload(Subnet(TENSORS), weight=0.0)),
    "a missing name": ("wrong_names", lambda: payload(Subnet(without("conv.bias")))),
    "an unknown name": ("wrong_names", lambda: payload(Subnet(TENSORS | {"backdoor": np.ones(1, np.float32)}))),
    "nothing": ("wrong_names", lambda: payload(Subnet({}))),
    "another shape": ("wrong_shape", lambda: payload(Subnet(TENSORS | {"conv.bias": np.ones(6, np.float32)}))),
    "a shape that would broadcast": (
        "wrong_shape",
        lambda: payload(Subnet(TENSORS | {"conv.bias": np.ones(1, np.float32)})),
    ),
    "the same elements in another shape": (
        "wrong_shape",
        lambda: payload(Subnet(TENSORS | {"conv.weight": np.ones((3, UNITS), np.float32)})),
    ),
    "another dtype": ("wrong_dtype", lambda: payload(Subnet(TENSORS | {"conv.bias": np.ones(UNITS)}))),
    "integers": ("wrong_dtype", lambda: payload(Subnet(TENSORS | {"conv.bias": np.ones(UNITS, np.int32)}))),
    "NaN": ("malformed_payload", lambda: payload(Subnet(with_value(np.nan)))),
    "infinity": ("malformed_payload", lambda: payload(Subnet(with_value(-np.inf)))),
    "a value that overflows any sum": ("not_finite", lambda: payload(Subnet(with_value(-3e38)))),
    "dense tensors with masks": ("wrong_shape", lambda: payload(Subnet(TENSORS, HELD))),
    "cut tensors without masks": ("wrong_shape", lambda: payload(Subnet(KEPT))),
    "a mask of another group": ("malformed_payload", lambda: payload(Subnet(KEPT, {"fc": HELD["conv"]}))),
    "a mask of another length": ("malformed_payload", lambda: payload(Subnet(KEPT, {"conv": np.ones(6, np.bool_)}))),
    "no mask of a group": ("malformed_payload", lambda: payload(Subnet(KEPT, {}))),
    "padding that holds units": (
        "malformed_payload",
        lambda: payload(Subnet(KEPT, HELD)).replace(np.packbits(HELD["conv"]).tobytes(), b"\xb7", 1),
    ),
    "an empty file": ("malformed_payload", lambda: b""),
    "no payload at all": ("malformed_payload", lambda: b"PK\x03\x04 a zip bomb"),
    "a torn payload": ("malformed_payload", lambda: payload(Subnet(TENSORS))[:-1]),
    "something behind it": ("malformed_payload", lambda: payload(Subnet(TENSORS)) + b"\0"),
    "a header of 4 GB": ("malformed_payload", lambda: b"TLR1" + b"\xff" * 4 + payload(Subnet(TENSORS))[8:]),
    "a tensor of 10 GB": ("malformed_payload", lambda: bomb((2**20, 2560))),
    "a tensor of 2^39 elements behind an axis of none": ("malformed_payload", lambda: bomb((0, 2**39))),
    "a file larger than any update": ("malformed_payload", lambda: payload(Subnet(TENSORS)) + bytes(100_000)),
}


def bomb(shape: tuple[int, ...]) -> bytes:
    """A small file whose header claims a huge tensor."""
    honest = payload(Subnet(TENSORS))
    length = int.from_bytes(honest[4:8], "little")
    header = msgpack.unpackb(honest[8 : 8 + length])
    header["tensors"][0]["shape"] = list(shape)
    packed: bytes = msgpack.packb(header)
    return b"TLR1" + len(packed).to_bytes(4, "little") + packed + honest[8 + length :]


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path: Path, lie: str) -> None:
    code, data = LIES[lie]
    assert refusal(tmp_path, data(), admission()) == code


def test_masks_where_nothing_is_pruned(tmp_path: Path) -> None:
    assert refusal(tmp_path, payload(Subnet(KEPT, HELD)), admission(None)) == "wrong_masks"


def test_a_mask_that_holds_nothing(tmp_path: Path) -> None:
    nothing = {name: array[:0] if name.startswith("conv") else array for name, array in KEPT.items()}
    subnet = Subnet(nothing, {"conv": np.zeros(UNITS, np.bool_)})
    assert refusal(tmp_path, payload(subnet), admission()) == "malformed_payload"


def test_uniform_weighting_takes_one_and_nothing_else(tmp_path: Path) -> None:
    gate = admission(weighting="uniform")
    assert examine(tmp_path, payload(Subnet(TENSORS), weight=1.0), gate)[2] == 1.0
    assert refusal(tmp_path, payload(Subnet(TENSORS)), gate) == "wrong_weight"


def test_a_device_that_does_not_say_how_many_examples_it_has_is_believed(tmp_path: Path) -> None:
    data = payload(Subnet(TENSORS), examples=1000, weight=1000.0)
    assert examine(tmp_path, data, admission(), examples=0)[2] == 1000.0


def test_every_flipped_byte_of_the_header_is_refused_or_harmless(tmp_path: Path) -> None:
    honest = payload(Subnet(KEPT, HELD))
    end = 8 + int.from_bytes(honest[4:8], "little")
    for place in range(end):
        data = bytearray(honest)
        data[place] ^= 0x55
        try:
            tensors, held, weight = examine(tmp_path, bytes(data), admission())
        except RefusedUpdate:
            continue
        assert weight == 4.0
        assert {name: array.shape for name, array in tensors.items()} == {
            name: LAYOUT.shape(name, TENSORS[name].shape, held) if held else TENSORS[name].shape for name in TENSORS
        }


ENCODINGS = tuple(Encoding)


@pytest.mark.parametrize("encoding", Encoding)
def test_only_encodings_of_the_plan_and_float32_are_taken(tmp_path: Path, encoding: Encoding) -> None:
    data = payload(Subnet(TENSORS), encoding=encoding, delta=encoding is not Encoding.FLOAT32)
    for taken in (ENCODINGS, (encoding.value,)):
        tensors, _, _ = examine(tmp_path, data, admission(encodings=taken))
        assert {array.dtype for name, array in tensors.items() if name != "steps"} == {np.dtype(np.float32)}
    others = tuple(each.value for each in Encoding if each is not encoding)
    if encoding is Encoding.FLOAT32:
        examine(tmp_path, data, admission(encodings=others))
    else:
        assert refusal(tmp_path, data, admission(encodings=others)) == "wrong_encoding"


@pytest.mark.parametrize(
    ("value", "start", "code"),
    [
        (1e29, 1e29, None),
        (1e29, 2e29, "not_finite"),  # 4 examples: (1e29 + 2e29) * 4 > 1e30
        (2e29, 1e29, "not_finite"),
        (3e38, 3e38, "not_finite"),
    ],
)
def test_a_difference_counts_with_what_it_is_added_to(
    tmp_path: Path, value: float, start: float, code: str | None
) -> None:
    gate = admission(encodings=ENCODINGS)
    places = START | {"conv.bias": start}
    changed = TENSORS | {"conv.bias": np.array([0, value, 0, -value, 0], np.float32)}
    data = payload(Subnet(changed), encoding=Encoding.INT8, delta=True)
    if code is None:
        examine(tmp_path, data, gate, start=places)
    else:
        with pytest.raises(RefusedUpdate) as refused:
            examine(tmp_path, data, gate, start=places)
        assert refused.value.code == code
    absolute = payload(Subnet(changed), encoding=Encoding.INT8)
    if value < 2.5e29:  # what the round started from is no part of it
        examine(tmp_path, absolute, gate, start=places)


# --- beside what was accepted lately --------------------------------------------------------------------------------


def bounds(**fields: float) -> Bounds:
    return Bounds(AdmissionSettings.model_validate(fields))


def test_what_moves_much_further_than_the_others_is_refused() -> None:
    gate = bounds(max_norm=2.0)
    for norm in (1.0, 100.0, 3.0):
        gate.check(norm, 1.0)
        gate.add(norm, 1.0)
    gate.check(6.0, 1.0)
    with pytest.raises(RefusedUpdate, match=r"a norm of 6\.1; admission\.max_norm = 2 times the median 3 is 6"):
        gate.check(6.1, 1.0)


def test_what_claims_to_weigh_much_more_than_the_others_is_refused() -> None:
    gate = bounds(max_weight=10.0)
    for weight in (10.0, 20.0, 30.0):
        gate.check(1e9, weight)
        gate.add(1e9, weight)
    gate.check(1e9, 200.0)
    with pytest.raises(RefusedUpdate) as refused:
        gate.check(1e9, 201.0)
    assert refused.value.code == "weight_too_large"


def test_a_minority_does_not_move_the_bound() -> None:
    gate = bounds(max_norm=2.0)
    for number in range(300):
        gate.add(1e9 if number % 5 == 0 else 1.0, 1.0)
    with pytest.raises(RefusedUpdate):
        gate.check(2.1, 1.0)


def test_what_was_long_ago_does_not_count() -> None:
    gate = bounds(max_norm=2.0)
    for norm in [100.0] * 100 + [1.0] * 100:
        gate.add(norm, 1.0)
    with pytest.raises(RefusedUpdate):
        gate.check(3.0, 1.0)


def test_without_bounds_and_without_others_everything_passes() -> None:
    free, strict = bounds(), bounds(max_norm=1.5, max_weight=1.5)
    for _ in range(2):
        free.add(1.0, 1.0)
        strict.add(1.0, 1.0)
        free.check(1e30, 1e9)
        strict.check(1e30, 1e9)


def test_the_distance_is_taken_over_the_floats_that_are_held() -> None:
    """Of a dense and a partial update, of values and of a difference; the counter does not count."""
    moved = {name: array + (1 if array.dtype.kind == "f" else 1000) for name, array in TENSORS.items()}
    assert distance(Subnet(moved), TENSORS, LAYOUT) == pytest.approx((15 + 5 + 10) ** 0.5)
    assert distance(Subnet(moved), TENSORS, None) == pytest.approx((15 + 5 + 10) ** 0.5)
    kept_of_it = {name: array + 2 if array.dtype.kind == "f" else array for name, array in KEPT.items()}
    assert distance(Subnet(kept_of_it, HELD), TENSORS, LAYOUT) == pytest.approx(2 * (9 + 3 + 6) ** 0.5)
    assert distance(Subnet({"w": np.array([3, 4], np.float32)}), None, None) == 5
    long = np.full(3 * 2**16 + 1, 1e20, np.float32)
    assert distance(Subnet({"w": long}), {"w": -long}, None) == pytest.approx(2e20 * long.size**0.5)
