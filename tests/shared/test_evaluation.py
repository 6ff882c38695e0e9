"""The spread of a metric over a fleet, against numbers worked out by hand."""

import itertools
import random

import numpy as np
import pytest

from shared.evaluation import accuracy_spread, spread

VALUES = {"a": 0.5, "b": 1.0, "c": 0.0, "d": 0.9}
WEIGHTS = {"a": 2.0, "b": 1.0, "c": 1.0, "d": 6.0}


def test_by_hand() -> None:
    result = spread(VALUES, WEIGHTS)
    assert result.count == 4
    assert result.weighted_mean == pytest.approx((2 * 0.5 + 1.0 + 0.0 + 6 * 0.9) / 10)  # 0.74
    assert result.mean == pytest.approx(0.6)
    # deviations -0.1, 0.4, -0.6, 0.3: squares 0.01 + 0.16 + 0.36 + 0.09 = 0.62, over 4
    assert result.deviation == pytest.approx(0.155**0.5)
    assert result.p10 == pytest.approx(0.15)  # place 0.3 between 0.0 and 0.5
    assert (result.worst, result.worst_device) == (0.0, "c")


def test_one_device_is_everything_itself() -> None:
    result = spread({"a": 0.25}, {"a": 7.0})
    assert (result.count, result.weighted_mean, result.mean, result.deviation) == (1, 0.25, 0.25, 0.0)
    assert (result.p10, result.worst, result.worst_device) == (0.25, 0.25, "a")


@pytest.mark.parametrize("count", [2, 10, 11, 20, 46, 100])
def test_percentile_and_deviation_are_numpys(count: int) -> None:
    draw = random.Random(count)
    values = {f"d{index}": draw.random() for index in range(count)}
    result = spread(values, dict.fromkeys(values, 1.0))
    assert result.p10 == pytest.approx(np.percentile(list(values.values()), 10), abs=1e-12)
    assert result.deviation == pytest.approx(np.std(list(values.values())), abs=1e-12)
    assert result.weighted_mean == pytest.approx(result.mean)


def test_with_eleven_devices_the_tenth_percentile_is_the_second_worst() -> None:
    assert spread({f"d{i:02}": i / 10 for i in range(11)}, {f"d{i:02}": 1.0 for i in range(11)}).p10 == 0.1


def test_the_order_of_the_devices_does_not_show_in_any_bit() -> None:
    expected = spread(VALUES, WEIGHTS)
    for order in itertools.permutations(VALUES):
        assert spread({device: VALUES[device] for device in order}, WEIGHTS) == expected


def test_of_equally_bad_devices_the_first_by_name_is_named() -> None:
    assert spread({"b": 0.0, "a": 0.0, "c": 1.0}, {"a": 1, "b": 1, "c": 1}).worst_device == "a"


def test_nobody_has_no_spread() -> None:
    with pytest.raises(ValueError, match="no device"):
        spread({}, {})


def test_accuracies_come_from_what_devices_reported() -> None:
    metrics = {
        "a": {"accuracy": 0.5, "test_examples": 30.0},
        "b": {"accuracy": 1.0, "test_examples": 10.0, "accuracy_global": 0.2},
    }
    own, common = accuracy_spread(metrics, "accuracy"), accuracy_spread(metrics, "accuracy_global")
    assert own is not None
    assert common is not None
    assert (own.weighted_mean, own.mean) == (0.625, 0.75)
    assert (common.count, common.worst_device) == (1, "b")
    assert accuracy_spread(metrics, "loss") is None


@pytest.mark.parametrize(
    "lie",
    [
        {"accuracy": 1e308, "test_examples": 1e308},
        {"accuracy": -0.1, "test_examples": 5.0},
        {"accuracy": 1.1, "test_examples": 5.0},
        {"accuracy": 0.5, "test_examples": 0.0},
        {"accuracy": 0.5, "test_examples": -3.0},
        {"accuracy": 0.5, "test_examples": 1e300},
        {"accuracy": 0.5},
        {},
    ],
)
def test_what_cannot_be_does_not_count(lie: dict[str, float]) -> None:
    honest = {"a": {"accuracy": 0.5, "test_examples": 30.0}}
    assert accuracy_spread(honest | {"liar": lie}, "accuracy") == accuracy_spread(honest, "accuracy")
    assert accuracy_spread({"liar": lie}, "accuracy") is None
