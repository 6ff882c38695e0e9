"""Hermes: the vectors of overlap averaging through whole rounds of three devices, and what pruning must not do."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from shared.aggregation import Update, WeightedMean
from shared.algorithms import hyperparameters
from shared.algorithms.device import personal_model, remember
from shared.algorithms.fedavg import FEDAVG
from shared.algorithms.hermes import HERMES
from shared.errors import ConfigError, TrainingError
from shared.messages import Plan
from shared.model_state import load_tensors, state_tensors
from shared.models import build_model
from shared.pruning import masked, parameters, put, shrink
from shared.selection import mac_cost, parameter_cost, start
from shared.settings import example_toml, explain, load_run_config
from shared.tensors import Masks, Subnet
from shared.training import Split, evaluate

THETA = ([1.0, 2, 3, 4], [5.0, 6, 7, 8], [9.0, 10, 11, 12])
MASKS = ("1110", "1100", "1011")


def model() -> nn.Module:
    return build_model("digitscnn", {"width": 8, "classes": 4}, seed=0)


def share_kept(fleet: Any, held: Any) -> float:
    dense = state_tensors(fleet.setup.model)
    return parameters(dense, fleet.setup.layout, held) / parameters(dense, fleet.setup.layout)


def four_channels() -> nn.Module:
    """Four hidden channels; the weight of the first layer is theta, one coordinate per channel."""
    network = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    nn.init.constant_(network[0].weight, 100.0)  # type: ignore[arg-type]
    return network


def exchange(make_fleet: Callable[..., Any], masks: Sequence[str], weights: Sequence[float], overlap: str) -> Any:
    """Devices that hold these channels of THETA upload, and get what came of it. Nothing is trained.

    Returns the fleet and per device its four coordinates, 0 where it holds nothing.
    """
    splits = [Split(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64)) for _ in masks]
    fleet = make_fleet(HERMES, four_channels(), splits, epochs=0, target={"parameters": 1.0}, overlap=overlap)
    setup = fleet.setup
    accumulator = HERMES.aggregate(setup.layout, setup.hp, WeightedMean)
    fleet.number = 1
    for device, (mask, theta, weight) in enumerate(zip(masks, THETA, weights, strict=False)):
        round_ = fleet.open(device)
        held = {"0": np.array([unit == "1" for unit in mask])}
        round_.model, round_.held = shrink(setup.model, setup.layout, held), held
        load_tensors(round_.model, {"0.weight": np.array(theta, np.float32)[held["0"], None]})
        HERMES.train(round_, setup.hp)
        accumulator.add(Update(HERMES.upload(round_, setup.hp), weight))
        fleet.remembered[device] = remember(setup, round_)
    fleet.aggregate = accumulator.result(fleet.aggregate.tensors)
    found = []
    for device in range(len(masks)):
        round_ = fleet.open(device)
        dense = {"0.weight": np.zeros((4, 1), np.float32)}
        put(dense, Subnet(state_tensors(round_.model, ["0.weight"]), round_.held), setup.layout)
        found.append(dense["0.weight"].ravel())
    return fleet, found


@pytest.mark.parametrize(
    ("overlap", "weights", "expected"),
    [
        ("all", [1, 1, 1], [[5, 2, 3, 0], [5, 6, 0, 0], [5, 0, 11, 12]]),
        ("all", [1, 1, 2], [[6, 2, 3, 0], [6, 6, 0, 0], [6, 0, 11, 12]]),
        ("any", [1, 1, 1], [[5, 4, 7, 0], [5, 4, 0, 0], [5, 0, 7, 12]]),
        ("any", [1, 1, 2], [[6, 4, 25 / 3, 0], [6, 4, 0, 0], [6, 0, 25 / 3, 12]]),
        ("agreed", [1, 1, 2], [[6, 4, 25 / 3, 0], [6, 4, 0, 0], [6, 0, 25 / 3, 12]]),
    ],
)
def test_vectors_of_three_devices(
    make_fleet: Callable[..., Any], overlap: str, weights: list[float], expected: list[list[float]]
) -> None:
    _, found = exchange(make_fleet, MASKS, weights, overlap)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("overlap", ["all", "any", "agreed"])
def test_disjoint_masks_leave_everybody_alone(make_fleet: Callable[..., Any], overlap: str) -> None:
    _, found = exchange(make_fleet, ("1000", "0110", "0001"), [1, 2, 3], overlap)
    np.testing.assert_array_equal(found, [[1, 0, 0, 0], [0, 6, 7, 0], [0, 0, 0, 12]])


@pytest.mark.parametrize("overlap", ["all", "any", "agreed"])
def test_what_nobody_holds_keeps_its_value_and_is_no_nan(make_fleet: Callable[..., Any], overlap: str) -> None:
    fleet, _ = exchange(make_fleet, ("1110", "1100", "1010"), [1, 1, 1], overlap)
    theta = fleet.aggregate.tensors["0.weight"].ravel()
    assert theta[3] == 100
    assert all(np.isfinite(array).all() for array in fleet.aggregate.tensors.values())


def test_with_overlap_all_only_what_everybody_holds_is_sent(make_fleet: Callable[..., Any]) -> None:
    fleet, _ = exchange(make_fleet, MASKS, [1, 1, 2], "all")
    np.testing.assert_array_equal(fleet.aggregate.valid["0"], [True, False, False, False])
    assert fleet.download.tensors["0.weight"].tolist() == [[6.0]]
    assert fleet.download.tensors["2.weight"].shape == (2, 1)


@pytest.mark.parametrize("overlap", ["all", "any", "agreed"])
def test_without_pruning_it_is_fedavg_bit_for_bit(make_fleet: Callable[..., Any], overlap: str) -> None:
    hermes, fedavg = (
        make_fleet(HERMES, model(), target={"parameters": 1.0}, overlap=overlap),
        make_fleet(FEDAVG, model()),
    )
    for _ in range(3):
        hermes.round()
        fedavg.round()
        for name, array in fedavg.aggregate.tensors.items():
            assert np.array_equal(hermes.aggregate.tensors[name], array), name


@pytest.fixture
def pruned(make_fleet: Callable[..., Any]) -> Any:
    """Rounds in which every device prunes, as [round][device], after the fleet that ran them."""
    fleet = make_fleet(
        HERMES,
        model(),
        pruning_amount=0.25,
        target={"parameters": 0.4},
        personal_amount=0.0,
        momentum=0.9,
        weight_decay=0.01,
    )
    return fleet, [fleet.round() for _ in range(4)]


def test_masks_only_shrink_until_the_target(pruned: Any) -> None:
    """In steps of the amount; the last pair of channels that is needed for it may exceed it by a tenth."""
    fleet, rounds = pruned
    for device in range(3):
        held = [round_[device].held for round_ in rounds]
        assert all((after[group] <= before[group]).all() for before, after in pairwise(held) for group in before)
        kept = [1.0, *(share_kept(fleet, masks) for masks in held)]
        assert all(0 <= before - after <= 0.25 + 0.1 for before, after in pairwise(kept))
        assert 0.3 < kept[-1] <= 0.4
        assert all((held[-1][group] == mask).all() for group, mask in held[-2].items()), "the target is reached"


def test_channels_stay_in_the_multiple_of_the_device_unless_the_algorithm_sets_one(
    pruned: Any, make_fleet: Callable[..., Any]
) -> None:
    _, rounds = pruned
    assert {int(mask.sum()) % 2 for mask in rounds[-1][0].held.values()} == {0}
    fleet = make_fleet(HERMES, model(), pruning_amount=0.5, accuracy_threshold=0.0, multiple=4)
    assert {int(mask.sum()) % 4 for mask in fleet.round()[0].held.values()} == {0}


def test_a_pruned_network_is_physically_smaller_and_tells_all_classes_apart(pruned: Any) -> None:
    fleet, rounds = pruned
    round_ = rounds[-1][0]
    sizes = {name: array.shape for name, array in state_tensors(round_.model).items()}
    assert sizes["14.weight"][0] == 4
    assert sizes["0.weight"][1:] == (1, 3, 3)
    assert sizes["0.weight"][0] == int(round_.held["0"].sum()) < 8
    total = sum(parameter.numel() for parameter in round_.model.parameters())
    assert total == round(share_kept(fleet, round_.held) * sum(p.numel() for p in model().parameters()))


def test_after_steps_with_momentum_and_weight_decay_it_still_is_the_masked_dense_network(pruned: Any) -> None:
    """Scattered into zeros, what is uploaded has 0 at every pruned coordinate, and the dense network that has it
    computes the same."""
    fleet, rounds = pruned
    layout = fleet.setup.layout
    for round_ in rounds[-1]:
        dense = {name: np.zeros_like(array) for name, array in state_tensors(model()).items()}
        put(dense, HERMES.upload(round_, fleet.setup.hp), layout)
        network = model()
        load_tensors(network, dense)
        same = masked(network, layout, round_.held)
        for name, array in state_tensors(same).items():
            if not name.endswith("running_var"):
                np.testing.assert_array_equal(array, dense[name])
        with torch.no_grad():
            inputs = fleet.validation.inputs
            torch.testing.assert_close(same.eval()(inputs), round_.model.eval()(inputs), atol=1e-5, rtol=0)


def test_survivors_keep_their_values_when_a_step_is_taken(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(HERMES, model(), pruning_amount=0.4, accuracy_threshold=0.0, epochs=0)
    round_ = fleet.round()[0]
    dense = state_tensors(model())
    put(dense, Subnet(state_tensors(round_.model), round_.held), fleet.setup.layout)
    assert round_.held is not None
    assert all(np.array_equal(dense[name], array) for name, array in state_tensors(model()).items())


def test_accuracy_below_the_threshold_leaves_the_mask_alone(make_fleet: Callable[..., Any]) -> None:
    """Decided on what was received, on the validation split: the untrained network of round 1 is below .6, the
    trained one of round 3 above."""
    fleet = make_fleet(HERMES, model(), accuracy_threshold=0.6, epochs=4)
    held = []
    for _ in range(3):
        fleet.number += 1
        good = evaluate(fleet.open(0).model, fleet.validation).accuracy >= 0.6
        fleet.number -= 1
        round_ = fleet.round()[0]
        held.append((good, round_.held is not None))
    assert held[0] == (False, False)
    assert held[-1] == (True, True)


def test_a_device_that_missed_rounds_holds_its_channels_and_gets_the_newest_values(pruned: Any) -> None:
    fleet, rounds = pruned
    remembered = remember(fleet.setup, rounds[1][0])
    fleet.remembered[0] = remembered
    round_ = fleet.open(0)
    alive = fleet.aggregate.alive
    assert all(np.array_equal(round_.held[group], mask & alive[group]) for group, mask in rounds[1][0].held.items())
    newest: npt.NDArray[np.float32] = fleet.aggregate.tensors["0.weight"][round_.held["0"]]
    np.testing.assert_array_equal(state_tensors(round_.model)["0.weight"], newest)


def test_the_own_model_is_the_shrunk_one(pruned: Any) -> None:
    fleet, _ = pruned
    round_ = fleet.open(0, final=True)
    own = state_tensors(personal_model(fleet.setup, round_)[0])
    assert {name: array.shape for name, array in own.items()} == {
        name: array.shape for name, array in state_tensors(round_.model).items()
    }


def test_the_last_step_is_each_devices_own(make_fleet: Callable[..., Any]) -> None:
    """What travels keeps target + personal_amount; what a device ends with is down to the target, by its own values."""
    amounts = {"target": {"parameters": 0.25}, "personal_amount": 0.25, "pruning_amount": 1.0, "multiple": 2}
    fleet = make_fleet(HERMES, model(), **amounts, finetune_epochs=3)
    fleet.round()
    alive = fleet.aggregate.alive
    assert 0.45 < share_kept(fleet, alive) <= 0.5
    own = []
    for device in range(len(fleet.splits)):
        round_ = fleet.open(device, final=True)
        network, held = personal_model(fleet.setup, round_)
        assert round_.held is not None
        assert all(np.array_equal(mask, alive[group]) for group, mask in round_.held.items()), "it has not changed"
        assert held is not None
        assert 0.2 < share_kept(fleet, held) <= 0.25
        assert all((mask <= alive[group]).all() for group, mask in held.items()), "masks only shrink"
        assert sum(p.numel() for p in network.parameters()) == parameter_cost(
            state_tensors(fleet.setup.model), fleet.setup.layout
        )(held)
        own.append(held)
    assert any((own[0][group] != own[1][group]).any() for group in alive), "their data differ, so do their networks"


@pytest.mark.parametrize("overlap", ["any", "all"])
def test_with_the_other_readings_nothing_is_removed_in_the_end(make_fleet: Callable[..., Any], overlap: str) -> None:
    fleet = make_fleet(HERMES, model(), overlap=overlap, target={"parameters": 0.5}, multiple=2)
    fleet.round()
    round_ = fleet.open(0, final=True)
    _, held = personal_model(fleet.setup, round_)
    assert held is round_.held


def test_with_any_a_device_that_never_took_part_gets_the_dense_model(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(HERMES, model(), accuracy_threshold=0.0, overlap="any")
    fleet.round()
    fleet.remembered.clear()
    round_ = fleet.open(0, final=True)
    assert round_.held is None
    np.testing.assert_array_equal(state_tensors(round_.model)["0.weight"], fleet.aggregate.tensors["0.weight"])


# --- agreed ----------------------------------------------------------------------------------------------------------


def test_what_nobody_of_the_last_round_holds_is_given_up(make_fleet: Callable[..., Any]) -> None:
    """By a device that was away and has all of it, too; and one that comes later never gets it."""
    fleet, _ = exchange(make_fleet, ("1110", "1100", "1010"), [1, 1, 1], "agreed")
    fleet.remembered[1] = {f"held/{group}": mask for group, mask in fleet.setup.layout.full().items()}
    fleet.remembered[2] = {}
    for device in (1, 2):
        round_ = fleet.open(device)
        assert round_.held["0"].tolist() == [True, True, True, False]
        assert state_tensors(round_.model)["0.weight"].ravel().tolist() == [5, 4, 7]


def test_what_is_left_of_a_group_is_never_nothing(make_fleet: Callable[..., Any]) -> None:
    """Of a device that comes back when its channels are gone; it has what it is sent."""
    fleet, _ = exchange(make_fleet, ("1100", "1000", "1100"), [1, 1, 1], "agreed")
    fleet.remembered[1] = {"held/0": np.array([False, False, True, True])}
    for received, expected in ((None, [False, False, True, True]), (fleet.download, [True, True, False, False])):
        round_ = fleet.open(1, received)
        assert round_.held["0"].tolist() == expected
        assert np.isfinite(state_tensors(round_.model)["0.weight"]).all()


def test_devices_with_different_data_agree_on_the_channels(make_fleet: Callable[..., Any]) -> None:
    """They choose by what they received, and take equal steps; so nothing is trained that others do not hold."""
    fleet = make_fleet(HERMES, model(), pruning_amount=0.25, target={"parameters": 0.4}, personal_amount=0.0)
    for _ in range(4):
        one, *others = fleet.round()
        assert all((other.held[group] == mask).all() for other in others for group, mask in one.held.items())
        assert all((fleet.aggregate.alive[group] == mask).all() for group, mask in one.held.items())
    assert share_kept(fleet, one.held) <= 0.4


def test_nothing_but_channels_and_residual_is_remembered(pruned: Any) -> None:
    """What is held is sent anew in every round."""
    fleet, _ = pruned
    assert {path.partition("/")[0] for path in fleet.remembered[0]} == {"held"}


def test_with_all_own_values_are_remembered_cut_down(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(HERMES, model(), pruning_amount=0.5, accuracy_threshold=0.0, overlap="all", batch_norm="local")
    round_ = fleet.round()[0]
    small = state_tensors(round_.model)
    groups = {path: array for path, array in fleet.remembered[0].items() if not path.startswith("held/")}
    assert {path.partition("/")[0] for path in groups} == {"own", "local"}
    assert all(np.array_equal(array, small[path.partition("/")[2]]) for path, array in groups.items())
    assert small["0.weight"].shape[0] < 8


def test_a_device_that_starts_shrunk_is_sent_and_trains_those_channels(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(HERMES, model(), accuracy_threshold=1.0)
    setup = fleet.setup
    held = start(state_tensors(setup.model), setup.layout, 0.5, 2)
    fleet.remembered[0] = {f"held/{group}": mask for group, mask in held.items()}
    round_, whole, _ = fleet.round()
    assert whole.held is None
    assert state_tensors(round_.model)["0.weight"].shape == (4, 1, 3, 3)
    assert fleet.aggregate.alive is None, "the others hold the rest"
    assert not any(np.isnan(array).any() for array in fleet.aggregate.tensors.values())


# --- the amount ------------------------------------------------------------------------------------------------------


def test_steps_in_macs(make_fleet: Callable[..., Any]) -> None:
    target = {"macs": 0.4}
    fleet = make_fleet(HERMES, model(), pruning_amount=0.25, target=target, personal_amount=0.0, epochs=0)
    cost = mac_cost(model(), fleet.setup.layout, fleet.validation.inputs[:1])
    full = cost(fleet.setup.layout.full())
    shares = [cost(fleet.round()[0].held) / full for _ in range(5)]
    assert all(0.25 + 0.15 >= before - after >= 0 for before, after in pairwise([1.0, *shares]))
    assert 0.3 < shares[-1] == shares[-2] <= 0.4


def test_steps_in_measured_milliseconds_end_where_the_noise_begins(make_fleet: Callable[..., Any]) -> None:
    """20 ms dense, in steps of 5. At the target, a measurement that is 4 % too high is no reason to go on."""
    target = {"latency_ms": 10.0}
    fleet = make_fleet(HERMES, model(), pruning_amount=0.25, target=target, personal_amount=0.0, epochs=0)
    cost = parameter_cost(state_tensors(model()), fleet.setup.layout)
    full, noise, asked = cost(fleet.setup.layout.full()), 1.0, []

    def latency(held: Masks) -> float:
        asked.append(held)
        return noise * 20 * cost(held) / full

    fleet.latency = latency
    found = [latency(fleet.round()[0].held) for _ in range(2)]
    assert 12.5 < found[0] <= 15
    assert 8.5 < found[1] <= 10
    before, noise = fleet.round()[0].held, 1.04
    asked.clear()
    after = fleet.round()[0].held
    assert all((after[group] == mask).all() for group, mask in before.items())
    assert len(asked) == 3, "each of the devices measures what it has, once"


def test_milliseconds_that_cannot_be_measured_are_refused(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(HERMES, model(), target={"latency_ms": 10.0})
    with pytest.raises(TrainingError, match="no ONNX template to measure: name a share"):
        fleet.round()


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ({}, "exactly one"),
        ({"parameters": 0.5, "macs": 0.5}, "exactly one"),
        ({"parameters": 1.5}, "share of the dense network"),
        ({"parameters": 0}, "above 0"),
        ({"latency_ms": -1}, "above 0"),
        ({"flops": 0.5}, "parameters"),
    ],
)
def test_targets_that_are_refused(target: dict[str, float], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        hyperparameters(HERMES, {"target": target})


@pytest.mark.parametrize("setting", ["algorithm.target={parameters=0.3}", "algorithm.target.parameters=.3"])
def test_a_target_is_set_and_shown_like_any_other_setting(setting: str, tmp_path: Path) -> None:
    config = load_run_config(None, [setting]).config
    hp = hyperparameters(HERMES, config.algorithm.hyperparameters)
    assert hp.model_dump()["target"] == {"parameters": 0.3}
    path = tmp_path / "run.toml"
    path.write_text(example_toml(config, hp))
    again = load_run_config(path).config.algorithm.hyperparameters
    assert hyperparameters(HERMES, again) == hp
    (row,) = [row for row in explain(load_run_config(path), hp) if row.key == "algorithm.target"]
    assert (row.value, row.origin) == ({"parameters": 0.3}, str(path))
    assert Plan(model="m", algorithm="hermes", hyperparameters=again).hyperparameters["target"] == {"parameters": 0.3}
