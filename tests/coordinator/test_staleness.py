"""FedBuff's step by hand: what updates count that started from different rounds."""

import math

import numpy as np
import pytest

from coordinator.staleness import moved_on, scale
from shared.aggregation import Overlap, Update, WeightedMean
from shared.tensors import Subnet, Tensors

STATISTICS = ("running_var",)


def tensors(weight: float, variance: float = 1.0, count: int = 0) -> Tensors:
    return {
        "weight": np.full(3, weight, np.float32),
        "running_var": np.full(3, variance, np.float32),
        "count": np.array(count, np.int64),
    }


def moved(update: Tensors, start: Tensors, now: Tensors, staleness: int, *, delta: bool = False) -> Tensors:
    found = moved_on(Subnet(update), start, now, staleness, delta=delta, statistics=STATISTICS, layout=None)
    return found.tensors


def test_the_paper_s_scale() -> None:
    assert [scale(staleness) for staleness in (0, 1, 3, 8)] == [1, 1 / math.sqrt(2), 1 / 2, 1 / 3]


def test_one_step_of_three_updates_with_two_stalenesses() -> None:
    """g_4 = 10; from g_4 to 12 with weight 1, from g_1 = 3 to 5 (s = 1/2) with weight 2, from g_3 = 8 to 7 with
    weight 1 (s = 1/sqrt 2): 10 + (1 * 2 + 2 * 1/2 * 2 - 1/sqrt 2) / 4."""
    now = tensors(10.0)
    mean = WeightedMean(None, overlap=Overlap.ANY)
    for weight, staleness, start, end in ((1, 0, 10.0, 12.0), (2, 3, 3.0, 5.0), (1, 1, 8.0, 7.0)):
        mean.add(Update(Subnet(moved(tensors(end), tensors(start), now, staleness)), weight))
    expected = 10 + (2 + 2 - 1 / math.sqrt(2)) / 4
    np.testing.assert_allclose(mean.result(now).tensors["weight"], expected, rtol=1e-6)


def test_a_difference_counts_as_the_values_that_it_stands_for() -> None:
    start, now = tensors(3.0, 0.5), tensors(10.0, 2.0)
    end = tensors(5.0, 0.25, count=7)
    difference = {name: array - start[name] if array.dtype.kind == "f" else array for name, array in end.items()}
    dense, delta = moved(end, start, now, 3), moved(difference, start, now, 3, delta=True)
    for name in dense:
        np.testing.assert_array_equal(dense[name], delta[name])
        assert dense[name].dtype == start[name].dtype
    assert dense["count"] == 7


@pytest.mark.parametrize("staleness", [1, 3, 10])
def test_a_variance_stays_positive_where_a_step_would_not(staleness: int) -> None:
    """The fleet has found 0.01 since; the step from 1 to 0.02 would lead far below 0."""
    found = moved(tensors(0, 0.02), tensors(0, 1.0), tensors(0, 0.01), staleness)["running_var"]
    share = scale(staleness)
    np.testing.assert_allclose(found, (1 - share) * 0.01 + share * 0.02, rtol=1e-4)
    assert 0.01 + share * (0.02 - 1) < 0
