"""The choice of channels keeps its promises, whatever the cost is."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruned_models import ZOO, resolved
from torch import Tensor, nn

from shared.channel_trace import channel_layout, random_masks
from shared.channels import ChannelLayout
from shared.errors import MalformedPayload
from shared.model_state import state_tensors
from shared.pruning import macs, shrink
from shared.selection import CLOSE, FLOOR, Cost, choose, drop, mac_cost, parameter_cost, scores, start, unit_sums
from shared.tensors import Masks

OURS = ["lenet-small", "lenet5", "digitscnn", "har1d", "resnet18", "mobilenet_v2"]


class Counted:
    """A cost that counts how often it is asked for, and checks what it is asked about."""

    def __init__(self, cost: Cost, layout: ChannelLayout) -> None:
        self.cost, self.layout, self.calls = cost, layout, 0

    def __call__(self, held: Masks) -> float:
        self.calls += 1
        self.layout.check(held)
        return self.cost(held)


def costs(name: str) -> dict[str, Counted]:
    model, layout, example = resolved(name)
    return {
        "parameters": Counted(parameter_cost(state_tensors(model), layout), layout),
        "macs": Counted(mac_cost(model, layout, example), layout),
    }


def widths(held: Masks) -> list[int]:
    return [int(mask.sum()) for mask in held.values()]


# --- costs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_costs_are_those_of_the_shrunk_network(name: str) -> None:
    """Depthwise (mobilenet, efficientnet) and grouped convolutions (regnet, resnext) included."""
    model, example = ZOO[name](), torch.zeros(1, 3, 32, 32)
    layout = channel_layout(model, torch.zeros(2, 3, 32, 32))
    count, work = parameter_cost(state_tensors(model), layout), mac_cost(model, layout, example)
    assert work(layout.full()) == macs(model, example)
    for seed, keep in enumerate((0.7, 0.1)):
        held = random_masks(layout, seed=seed, keep=keep)
        small = shrink(model, layout, held)
        assert count(held) == sum(one.numel() for one in small.parameters())
        assert work(held) == macs(small, example)


def test_macs_of_a_layer_that_is_used_twice_and_of_series_count_every_use() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.middle = nn.Conv1d(3, 4, 3, bias=False), nn.Conv1d(4, 4, 1)
            self.leave = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            leaving: Tensor = self.leave(self.middle(self.middle(self.enter(x))).mean(-1))
            return leaving

    model, example = Twice(), torch.zeros(5, 3, 10)
    layout = channel_layout(model, example)
    cost = mac_cost(model, layout, example)
    assert cost(layout.full()) == 3 * 4 * 3 * 8 + 2 * 4 * 4 * 8 + 4 * 2
    held = {group: np.arange(units) > 0 for group, units in layout.groups.items()}
    assert cost(held) == 3 * 3 * 3 * 8 + 2 * 3 * 3 * 8 + 3 * 2


# --- importance -----------------------------------------------------------------------------------------------------


def test_scores_are_the_l2_norm_of_all_that_goes_with_a_channel_over_the_mean_of_its_group() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 1))
    layout = channel_layout(model, torch.zeros(2, 2))
    tensors = {
        "0.weight": [[1, -2], [10, 20]],
        "0.bias": [3, 30],
        "1.weight": [0.5, 5],
        "1.bias": [0.25, 0],
        "1.running_mean": [100, 100],
        "1.running_var": [100, 100],
        "3.weight": [[-4, 40]],
        "3.bias": [1000],
    }
    arrays = {name: np.array(values, dtype=np.float32) for name, values in tensors.items()}
    weak = math.sqrt(1 + 4 + 9 + 0.25 + 0.0625 + 16)
    strong = math.sqrt(100 + 400 + 900 + 25 + 1600)
    mean = (weak + strong) / 2
    np.testing.assert_allclose(scores(arrays, layout)["0"], [weak / mean, strong / mean])
    assert scores(arrays, layout, {"0": np.array([True, False])})["0"].tolist() == [1, 0]
    cost = parameter_cost(arrays, layout)
    assert choose(arrays, layout, None, cost=cost, goal=0.9 * 13, multiple=1)["0"].tolist() == [False, True]


def test_a_consumer_counts_only_over_the_channels_that_are_held() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    layout = channel_layout(model, torch.zeros(2, 1))
    arrays = {"0.weight": np.ones((2, 1)), "1.weight": np.array([[1.0, 100], [2, 100]]), "2.weight": np.ones((1, 2))}
    held = {"0": np.array([True, False]), "1": np.array([True, True])}
    assert unit_sums(arrays, layout, held)["1"].tolist() == [2, 3]
    assert unit_sums(arrays, layout, held)["0"].tolist() == [1 + 1 + 2, 0]
    ratio = math.sqrt(2) / math.sqrt(5)
    np.testing.assert_allclose(scores(arrays, layout, held)["1"], [2 * ratio / (1 + ratio), 2 / (1 + ratio)])


def test_layers_of_other_scales_are_compared_fairly() -> None:
    """All weights of a layer ten times as large: nothing else is chosen."""
    model, layout, _ = resolved("digitscnn")
    tensors = state_tensors(model)
    before = scores(tensors, layout)
    scaled = {name: array * 10 if name.startswith("10.") else array for name, array in tensors.items()}
    group = list(layout.groups)[-1]
    after = scores(scaled, layout)
    assert all(abs(one.mean() - 1) < 1e-12 for one in after.values())
    assert np.abs(after[group] - before[group]).max() < 0.2


def test_a_network_of_zeros_has_no_preference_and_no_nan() -> None:
    model, layout, _ = resolved("digitscnn")
    zeros = {name: np.zeros_like(array) for name, array in state_tensors(model).items()}
    assert all(not one.any() for one in scores(zeros, layout).values())
    cost = parameter_cost(zeros, layout)
    held = choose(zeros, layout, None, cost=cost, goal=0.5 * cost(layout.full()))
    assert 0 < cost(held) <= 0.5 * cost(layout.full())
    assert all((np.diff(mask.astype(int)) <= 0).all() for mask in held.values()), "ties go by their order"


# --- the choice -----------------------------------------------------------------------------------------------------


def check_choice(before: Masks, after: Masks, multiple: int, floor: float = FLOOR) -> None:
    for group, mask in after.items():
        assert not (mask & ~before[group]).any(), "masks only shrink"
        kept, units = int(mask.sum()), mask.size
        small = [multiple >> tier for tier in range(1, multiple.bit_length())]
        assert kept == before[group].sum() or (kept >= floor * units and (kept % multiple == 0 or kept in small))


@pytest.mark.parametrize("unit", ["parameters", "macs"])
@pytest.mark.parametrize("share", [0.75, 0.5, 0.25])
@pytest.mark.parametrize("name", OURS)
def test_the_goal_is_met_within_five_percent_where_blocks_of_eight_allow_it(name: str, share: float, unit: str) -> None:
    model, layout, _ = resolved(name)
    tensors, cost = state_tensors(model), costs(name)[unit]
    goal = share * cost(layout.full())
    held = choose(tensors, layout, None, cost=cost, goal=goal)
    check_choice(layout.full(), held, 8)
    if cost(held) < CLOSE * goal:
        assert len(layout.groups) <= 4
        assert cost(held) >= best(layout, cost, goal, smallest=min(8, *widths(held)))
    assert cost(held) <= goal


def best(layout: ChannelLayout, cost: Cost, goal: float, smallest: int) -> float:
    """The highest cost up to the goal that any widths have, by trying them all."""
    ladders = [
        {units, *(width for width in range(8, units, 8) if width >= FLOOR * units)}
        | {width for width in (4, 2, 1) if FLOOR * units <= width < units and width >= smallest}
        for units in layout.groups.values()
    ]
    masks = ({group: np.arange(layout.groups[group]) < width for group, width in zip(layout.groups, one, strict=True)}
             for one in itertools.product(*ladders))  # fmt: skip
    return max(price for price in map(cost, masks) if price <= goal)


@given(
    seed=st.integers(0, 10**6),
    shares=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4),
    multiple=st.sampled_from([1, 4, 8, 12, 32]),
    unit=st.sampled_from(["parameters", "macs"]),
)
@settings(max_examples=60, deadline=None)
def test_choices_shrink_and_keep_their_promises(seed: int, shares: list[float], multiple: int, unit: str) -> None:
    _, layout, _ = resolved("digitscnn")
    random, cost, held = np.random.default_rng(seed), costs("digitscnn")[unit], layout.full()
    dense = cost(held)
    for share in shares:
        before, importance = held, {group: random.random(units) for group, units in layout.groups.items()}
        held = drop(importance, layout, before, cost=cost, goal=share * dense, multiple=multiple)
        check_choice(before, held, multiple)
        again = drop(importance, layout, before, cost=cost, goal=share * dense, multiple=multiple)
        assert all((again[group] == mask).all() for group, mask in held.items()), "deterministic"
        smallest = all(mask.sum() / 2 < max(1, FLOOR * mask.size) for mask in held.values())
        assert cost(held) <= share * dense or smallest
        if cost(before) <= share * dense:
            assert all((held[group] == before[group]).all() for group in held)
        for group, mask in held.items():
            gone = before[group] & ~mask
            assert not gone.any() or importance[group][gone].max() <= importance[group][mask].min()


def test_the_least_important_blocks_go_first_whatever_their_layer() -> None:
    layout = ChannelLayout({"a": 4, "b": 4}, {})
    importance = {"a": np.array([5.0, 1, 4, 2]), "b": np.array([3.0, 9, 8, 7])}
    cost: Cost = lambda held: float(sum(widths(held)))  # noqa: E731
    kept = [drop(importance, layout, layout.full(), cost=cost, goal=goal, multiple=1) for goal in range(8, 2, -1)]
    assert [widths(held) for held in kept] == [[4, 4], [3, 4], [2, 4], [2, 3], [1, 3], [1, 2]]
    assert kept[2]["a"].tolist() == [True, False, True, False]


def test_a_block_that_takes_too_much_is_left_for_others() -> None:
    """The weakest channel costs 60 of 100: at 80, two strong ones go instead."""
    layout = ChannelLayout({"a": 2, "b": 4}, {})
    importance = {"a": np.array([0.1, 9]), "b": np.array([1.0, 2, 3, 4])}
    cost: Cost = lambda held: 60.0 * held["a"].sum() - 60 + 10.0 * held["b"].sum()  # noqa: E731
    assert widths(drop(importance, layout, layout.full(), cost=cost, goal=80, multiple=1)) == [2, 2]
    assert widths(drop(importance, layout, layout.full(), cost=cost, goal=40, multiple=1)) == [1, 4]
    assert widths(drop(importance, layout, layout.full(), cost=cost, goal=20, multiple=1)) == [1, 2]


def test_small_layers_go_below_the_multiple_only_where_the_goal_needs_it() -> None:
    """lenet-small (8, 16 and 64 channels) has 14 % of its parameters at 8, 8, 8."""
    model, layout, _ = resolved("lenet-small")
    tensors, cost = state_tensors(model), costs("lenet-small")["parameters"]
    dense = cost(layout.full())
    for share, smallest in ((0.25, 8), (0.15, 8), (0.1, 4), (0.05, 2)):
        held = choose(tensors, layout, None, cost=cost, goal=share * dense)
        assert cost(held) <= share * dense
        assert min(widths(held)) == smallest


@pytest.mark.parametrize("floor", [0.0, 0.125, 0.5, 1.0])
def test_the_floor_holds_even_if_the_goal_is_out_of_reach(floor: float) -> None:
    model, layout, _ = resolved("digitscnn")
    cost = costs("digitscnn")["parameters"]
    held = choose(state_tensors(model), layout, None, cost=cost, goal=0, floor=floor)
    assert widths(held) == {0.0: [1, 1, 1, 1], 0.125: [2, 4, 8, 8], 0.5: [8, 16, 32, 32], 1.0: [16, 32, 64, 56]}[floor]
    assert widths(choose(state_tensors(model), layout, held, cost=cost, goal=0, floor=floor)) == widths(held)


def test_pruning_in_steps_goes_on_in_a_small_network() -> None:
    """The digits network has groups of 16, 32, 64 and 56: every round of a schedule must get somewhere."""
    model, layout, _ = resolved("digitscnn")
    tensors, cost, held = state_tensors(model), costs("digitscnn")["parameters"], layout.full()
    dense = before = cost(held)
    for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
        held = choose(tensors, layout, held, cost=cost, goal=share * dense)
        assert cost(held) <= share * dense
        assert cost(held) < before
        before = cost(held)


@pytest.mark.parametrize("name", OURS)
def test_steps_with_the_end_in_view_end_where_one_step_does(name: str) -> None:
    """Each step taken for itself alone leaves lenet-small with 14 % of its parameters, where 20 % are to be had."""
    model, layout, _ = resolved(name)
    tensors, cost = state_tensors(model), costs(name)["parameters"]
    whole, held = cost(layout.full()), layout.full()
    final = choose(tensors, layout, None, cost=cost, goal=0.25 * whole)
    for share in (0.9, 0.7, 0.5, 0.3):
        before, held = held, choose(tensors, layout, held, cost=cost, goal=share * whole, then=0.25 * whole)
        assert cost(held) <= share * whole
        check_choice(before, held, 8)
    held = choose(tensors, layout, held, cost=cost, goal=0.25 * whole)
    assert CLOSE * cost(final) <= cost(held) <= 0.25 * whole


def test_what_is_spared_stays_whatever_it_scores() -> None:
    _, layout, _ = resolved("digitscnn")
    spared = {group: np.arange(units) < 8 for group, units in layout.groups.items()}
    least_first = {group: np.arange(units, dtype=np.float64) for group, units in layout.groups.items()}
    held = drop(least_first, layout, layout.full(), cost=lambda held: sum(widths(held)), goal=0, spared=spared, floor=0)
    assert all(np.array_equal(mask, spared[group]) for group, mask in held.items())


@pytest.mark.parametrize("name", OURS)
def test_a_slow_cost_is_asked_for_a_few_times(name: str) -> None:
    model, layout, _ = resolved(name)
    tensors, blocks = state_tensors(model), sum(layout.groups.values()) / 8
    for unit, cost in costs(name).items():
        goal, cost.calls = 0.5 * cost(layout.full()), 0
        choose(tensors, layout, None, cost=cost, goal=goal)
        assert cost.calls <= 3 * math.log2(blocks) + 12, unit


@given(seed=st.integers(0, 10**6), share=st.floats(0.2, 0.9))
@settings(max_examples=25, deadline=None)
def test_a_noisy_cost_is_met_as_it_was_measured(seed: int, share: float) -> None:
    """Of the masks that are returned, it was once measured that they reach the goal."""
    model, layout, _ = resolved("har1d")
    exact, random = costs("har1d")["macs"], np.random.default_rng(seed)
    measured: dict[tuple[int, ...], list[float]] = {}

    def noisy(held: Masks) -> float:
        price = exact(held) * random.normal(1, 0.05)
        measured.setdefault(tuple(widths(held)), []).append(price)
        return price

    goal = share * exact(layout.full())
    held = choose(state_tensors(model), layout, None, cost=noisy, goal=goal)
    check_choice(layout.full(), held, 8)
    assert [price for price in measured[tuple(widths(held))] if price <= goal] == measured[tuple(widths(held))]
    assert exact(held) <= 1.25 * goal


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_cost_that_is_nothing_but_noise_still_gives_a_choice(seed: int) -> None:
    model, layout, _ = resolved("har1d")
    random = np.random.default_rng(seed)
    held = choose(state_tensors(model), layout, None, cost=lambda _: random.normal(1, 0.3), goal=0.9)
    layout.check(held)
    check_choice(layout.full(), held, 8)


def test_a_cost_with_a_constant_part_that_is_above_the_goal_gives_the_smallest_network() -> None:
    model, layout, _ = resolved("har1d")
    held = choose(state_tensors(model), layout, None, cost=lambda held: 100.0, goal=99.0)
    assert widths(held) == [4, 8, 8]


def test_masks_that_do_not_fit_are_refused() -> None:
    model, layout, _ = resolved("digitscnn")
    with pytest.raises(MalformedPayload):
        choose(state_tensors(model), layout, {"elsewhere": np.ones(3, bool)}, cost=lambda _: 1.0, goal=0.5)


def test_the_classifier_keeps_its_rows_and_the_input_its_columns() -> None:
    for name in ("digitscnn", "har1d", "resnet18", "mobilenet_v2"):
        model, layout, _ = resolved(name)
        small = shrink(model, layout, choose(state_tensors(model), layout, None, cost=lambda _: 1.0, goal=0.0))
        weights = [layer.weight for layer in small.modules() if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)]
        dense = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)]
        assert weights[-1].shape[0] == dense[-1].shape[0]
        assert weights[0].shape[1] == dense[0].shape[1]


def test_a_model_without_groups_keeps_everything() -> None:
    model = nn.Linear(3, 2)
    layout, tensors = channel_layout(model, torch.zeros(2, 3)), state_tensors(model)
    assert choose(tensors, layout, None, cost=parameter_cost(tensors, layout), goal=1) == {}
    assert start(tensors, layout, 0.5) == {}


# --- starting shrunk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "multiple", "expected"),
    [
        (1.0, 8, [16, 32, 64, 56]),
        (0.5, 8, [8, 16, 32, 32]),
        (0.5, 1, [8, 16, 32, 28]),
        (0.3, 8, [8, 16, 24, 24]),
        (0.01, 8, [8, 8, 8, 8]),
        (0.01, 1, [1, 1, 1, 1]),
        (0.5, 32, [16, 32, 32, 32]),
    ],
)
def test_a_start_keeps_the_most_important_share_of_every_group(
    width: float, multiple: int, expected: list[int]
) -> None:
    model, layout, _ = resolved("digitscnn")
    tensors = state_tensors(model)
    held, worth = start(tensors, layout, width, multiple), scores(tensors, layout)
    layout.check(held)
    assert widths(held) == expected
    assert all(worth[group][mask].min() >= worth[group][~mask].max(initial=0) for group, mask in held.items())
