"""Shrunk networks compute and train exactly what masked ones do."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
import torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from pruned_models import ZOO, resolved
from torch import Tensor, nn

from shared import models
from shared.channel_trace import channel_layout, random_masks
from shared.channels import ChannelLayout
from shared.model_state import load_tensors, state_tensors
from shared.models import build_model
from shared.partition import head_names
from shared.pruning import channels, macs, masked, parameters, put, shrink, take
from shared.tensors import Subnet


def difference(one: nn.Module, other: nn.Module, example: Tensor) -> float:
    """Largest difference of the outputs, relative to the largest output."""
    with torch.no_grad():
        torch.manual_seed(0)  # stochastic depth
        a = one(example)
        torch.manual_seed(0)
        b = other(example)
    return float((a - b).abs().max() / b.abs().max())


def without_dropout(model: nn.Module) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model


# --- shrunk is masked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_shrunk_equals_masked_in_eval_and_train_mode(name: str) -> None:
    model = without_dropout(ZOO[name]()).double()
    example = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layout = channel_layout(model, example[:2])
    assert layout.groups
    for seed, keep in enumerate((0.7, 0.3, 0.1)):
        held = random_masks(layout, seed=seed, keep=keep)
        small, zeroed = shrink(model, layout, held), masked(model, layout, held)
        assert parameters(small, layout) == parameters(model, layout, held) < parameters(model, layout)
        for training in (False, True):
            assert difference(small.train(training), zeroed.train(training), example) < 1e-9


@pytest.mark.parametrize("name", ["digitscnn", "har1d", "lenet-small"])
def test_the_same_in_float32_with_our_own_models(name: str) -> None:
    model, layout, example = resolved(name)
    held = random_masks(layout, seed=0)
    small, zeroed = shrink(model, layout, held), masked(model, layout, held)
    assert difference(small.eval(), zeroed.eval(), example) < 1e-5
    assert difference(small.train(), zeroed.train(), example) < 1e-5


def test_masking_convolutions_alone_is_not_pruning() -> None:
    """The trap: BatchNorm's bias flows on where only the convolution's rows are zero."""
    model, layout, example = resolved("digitscnn")
    held = random_masks(layout, seed=0)
    trapped = copy.deepcopy(model).eval()
    for path, layer in trapped.named_modules():
        if isinstance(layer, nn.Conv2d):
            rows = layout.index(f"{path}.weight", held)[0]
            layer.weight.data[np.setdiff1d(np.arange(layer.out_channels), rows)] = 0
    assert difference(shrink(model, layout, held).eval(), trapped, example) > 0.1


def test_layers_of_the_shrunk_model_know_their_widths() -> None:
    model, layout, _ = resolved("mobilenet_v2")
    small = shrink(model, layout, random_masks(layout, seed=0))
    for layer in small.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
        elif isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean.shape == layer.weight.shape == (layer.num_features,)
        elif isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)


def test_shrinking_leaves_the_model_alone_and_keeps_what_is_frozen() -> None:
    model, layout, _ = resolved("digitscnn")
    before = state_tensors(model)
    model[0].weight.requires_grad_(False)
    small = shrink(model, layout, random_masks(layout, seed=0))
    model[0].weight.requires_grad_(True)
    assert not small[0].weight.requires_grad
    assert small[3 + 1].weight.requires_grad
    assert all((array == before[name]).all() for name, array in state_tensors(model).items())


def test_tied_parameters_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    model[2].weight = model[1].weight
    layout = channel_layout(model, torch.zeros(2, 3))
    small = shrink(model, layout, random_masks(layout, seed=0))
    assert small[1].weight is small[2].weight
    assert small[1].weight.shape == (4, 4)


# --- training -------------------------------------------------------------------------------------------------------


def train(model: nn.Module, inputs: Tensor, mask: dict[str, Tensor] | None = None) -> None:
    """Four steps of SGD with momentum and weight decay."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-2)
    for step in range(4):
        optimizer.zero_grad()
        scores_ = model(inputs[step])
        nn.functional.cross_entropy(scores_, torch.arange(len(scores_)) % scores_.shape[1]).backward()
        for name, parameter in model.named_parameters():
            if mask is not None and parameter.grad is not None:
                parameter.grad *= mask[name]
        optimizer.step()


# model -> shape of an example, as small as it takes
OURS: dict[str, tuple[int, ...]] = {
    "smallcnn": (1, 8, 8),
    "digitscnn": (1, 8, 8),
    "lenet-small": (1, 16, 16),
    "lenet5": (1, 12, 12),
    "har1d": (6, 16),
    "resnet18": (3, 8, 8),
    "mobilenet_v2": (3, 8, 8),
}


@functools.cache
def tiny(name: str) -> tuple[nn.Module, ChannelLayout, Tensor]:
    """Model in float64 (never change it), layout, inputs of four steps. Deep networks blow rounding errors up where
    they divide by the deviation of a few almost equal numbers: BatchNorm's epsilon is large enough not to."""
    shape = OURS[name]
    size = {"length": shape[-1]} if len(shape) == 2 else {"size": shape[-1]}
    model = without_dropout(build_model(name, size, seed=0)).double()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.eps = 0.1
    inputs = torch.randn(4, 6, *shape, generator=torch.Generator().manual_seed(0)).double()
    return model, channel_layout(model, inputs[0]), inputs


def test_all_models_that_come_with_talaria_are_tested() -> None:
    assert OURS.keys() == models.ZOO.keys()


@pytest.mark.parametrize(("keep", "gradient_mask"), [(0.2, True), (0.6, False)])
@pytest.mark.parametrize("name", OURS)
def test_training_the_shrunk_network_is_training_the_masked_one(name: str, keep: float, gradient_mask: bool) -> None:
    """Scattered back, parameters and BatchNorm's statistics are what gradient-masked dense training gives; without the
    mask too, since nothing regrows. Any number of channels may be left, not multiples of eight alone."""
    model, layout, inputs = tiny(name)
    held = random_masks(layout, seed=round(100 * keep) + gradient_mask, keep=keep)
    small, zeroed = shrink(model, layout, held).train(), masked(model, layout, held).train()
    train(small, inputs)
    train(zeroed, inputs, dict(masked(ones_like(model), layout, held).named_parameters()) if gradient_mask else None)

    ours, dense = state_tensors(small), state_tensors(zeroed)
    assert ours.keys() == dense.keys()
    scattered = {array_name: np.zeros_like(array) for array_name, array in dense.items()}
    put(scattered, Subnet(ours, held), layout)
    for array_name, array in dense.items():
        if array_name.endswith("running_var"):  # the variance of an absent channel is of no use: any value is right
            array, scattered[array_name] = take({array_name: array}, layout, held)[array_name], ours[array_name]
        largest = max(1.0, float(np.abs(array).max(initial=0)))
        np.testing.assert_allclose(scattered[array_name], array, rtol=0, atol=1e-9 * largest, err_msg=array_name)


def test_training_moves_parameters_and_statistics() -> None:
    """Or the comparison above would compare what never changed."""
    model, layout, inputs = tiny("digitscnn")
    small = shrink(model, layout, random_masks(layout, seed=0)).train()
    before = state_tensors(small)
    train(small, inputs)
    assert all((array != before[name]).any() for name, array in state_tensors(small).items())


def ones_like(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    return model


# --- dense and shrunk tensors ---------------------------------------------------------------------------------------


def test_taken_tensors_fit_the_shrunk_model() -> None:
    model, layout, example = resolved("digitscnn")
    held = random_masks(layout, seed=0)
    small = shrink(model, layout, held).eval()
    other = shrink(masked(model, layout, random_masks(layout, seed=1)), layout, held).eval()
    load_tensors(other, take(state_tensors(model), layout, held))
    assert torch.equal(small(example), other(example))


@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=25, deadline=None)
def test_put_is_the_inverse_of_take_and_touches_nothing_else(seed: int, keep: float) -> None:
    model, layout, _ = resolved("digitscnn")
    held = random_masks(layout, seed=seed, keep=keep)
    dense = state_tensors(model)
    marked = {name: np.full_like(array, 7) for name, array in dense.items()}
    put(marked, Subnet(take(dense, layout, held), held), layout)
    again = take(marked, layout, held)
    assert all((again[name] == array).all() for name, array in take(dense, layout, held).items())
    for name, array in dense.items():
        inside = math.prod(layout.shape(name, array.shape, held))
        assert int((marked[name] == 7).sum()) == array.size - inside


def test_without_masks_everything_is_taken_and_put() -> None:
    model, layout, _ = resolved("digitscnn")
    dense = state_tensors(model)
    assert all(array is dense[name] for name, array in take(dense, layout, None).items())
    target = {name: np.zeros_like(array) for name, array in dense.items()}
    put(target, Subnet({"0.weight": dense["0.weight"]}), layout)
    assert (target["0.weight"] == dense["0.weight"]).all()
    assert not target["4.weight"].any()


# --- groups against torch-pruning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torch_pruning_finds_the_same_groups(name: str) -> None:
    model, layout, example = resolved(name)
    model = copy.deepcopy(model).eval()
    paths = {layer: path for path, layer in model.named_modules()}
    makers: dict[str, set[str]] = {group: set() for group in layout.groups}
    ends = np.cumsum(list(layout.groups.values()))
    for path, layer in model.named_modules():
        rows = layout.axes.get(f"{path}.weight", (None,))[0]
        if isinstance(layer, nn.Conv2d | nn.Linear) and rows is not None and getattr(layer, "groups", 1) == 1:
            makers[list(layout.groups)[int(np.searchsorted(ends, rows[0], side="right"))]].add(path)

    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    classifier = model.get_submodule(next(iter(head_names(model))).rpartition(".")[0])
    theirs = {
        frozenset(
            paths[dep.target.module]
            for dep, _ in group
            if graph.is_out_channel_pruning_fn(dep.handler)
            and isinstance(dep.target.module, nn.Conv2d | nn.Linear)
            and getattr(dep.target.module, "groups", 1) == 1
        )
        for group in graph.get_all_groups(ignored_layers=[classifier], root_module_types=[nn.Conv2d, nn.Linear])
    }
    assert {frozenset(one) for one in makers.values()} == theirs


def test_the_masks_of_resnet18_are_360_bytes() -> None:
    _, layout, _ = resolved("resnet18")
    assert len(layout.groups) == 12
    assert sum(np.packbits(mask).size for mask in layout.full().values()) == 360
    assert list(layout.groups)[:3] == ["conv1", "layer1.0.conv1", "layer1.1.conv1"]


# --- how much is left -----------------------------------------------------------------------------------------------


def test_parameters_macs_and_channels_by_hand() -> None:
    model, layout, example = resolved("lenet-small")
    dense = (8 * 25 + 8) + (16 * 8 * 25 + 16) + (256 * 64 + 64) + (64 * 10 + 10)
    assert parameters(model, layout) == sum(one.numel() for one in model.parameters()) == dense
    assert macs(model, example) == 8 * 25 * 24 * 24 + 16 * 8 * 25 * 8 * 8 + 256 * 64 + 64 * 10
    held = layout.full()
    held["3"][4:] = False
    held["7"][60:] = False
    left = (8 * 25 + 8) + (4 * 8 * 25 + 4) + (64 * 60 + 60) + (60 * 10 + 10)
    small = shrink(model, layout, held)
    assert parameters(state_tensors(model), layout, held) == parameters(small, layout) == left
    assert macs(small, example) == 8 * 25 * 24 * 24 + 4 * 8 * 25 * 8 * 8 + 64 * 60 + 60 * 10
    assert channels(layout, held) == (8 + 4 + 60, 88)
    assert channels(layout, None) == (88, 88)


def test_statistics_are_not_parameters() -> None:
    model, layout, _ = resolved("digitscnn")
    assert parameters(state_tensors(model), layout) == sum(one.numel() for one in model.parameters()) == 38_370
