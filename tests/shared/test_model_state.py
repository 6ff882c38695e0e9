"""A model's whole state from a file: all of it or nothing."""

from collections.abc import Callable

import numpy as np
import pytest
from torch import nn

from shared.errors import MalformedPayload
from shared.model_state import load_state, state_tensors
from shared.models import build_model
from shared.tensors import Subnet, Tensors

Change = Callable[[Tensors], object]


@pytest.fixture
def model() -> nn.Module:
    return build_model("digitscnn", {"width": 4}, seed=0)


def other() -> Tensors:
    """Another state of the same model, its BatchNorm counters included."""
    tensors = state_tensors(build_model("digitscnn", {"width": 4}, seed=1))
    return {name: array + np.asarray(3, array.dtype) for name, array in tensors.items()}


def same(one: Tensors, two: Tensors) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_the_state_becomes_that_of_the_file(model: nn.Module) -> None:
    load_state(model, Subnet(other()))
    assert same(state_tensors(model), other())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("14.weight"), r"lacks 14\.weight \(1 of 22 tensors\)"),
        (lambda t: t.pop("1.running_mean"), r"lacks 1\.running_mean"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), r"has no extra \(1 tensors\)"),
        (lambda t: t.update({"14.bias": t["14.bias"][:9]}), r"14\.bias is float32\[9\], the model's float32\[10\]"),
        (lambda t: t.update({"14.bias": t["14.bias"][None]}), r"float32\[1, 10\], the model's float32\[10\]"),
        (lambda t: t.update({"14.bias": t["14.bias"].astype(np.float64)}), r"14\.bias is float64\[10\]"),
    ],
    ids=["missing", "missing buffer", "unknown", "shape", "broadcastable", "dtype"],
)
def test_what_is_not_this_models_state_changes_nothing(model: nn.Module, change: Change, said: str) -> None:
    before, tensors = state_tensors(model), other()
    change(tensors)
    with pytest.raises(MalformedPayload, match=said):
        load_state(model, Subnet(tensors))
    assert same(state_tensors(model), before)


def test_a_subnetwork_is_no_whole_model(model: nn.Module) -> None:
    with pytest.raises(MalformedPayload, match="some of the model's channels"):
        load_state(model, Subnet(other(), {"0": np.ones(4, np.bool_)}))
