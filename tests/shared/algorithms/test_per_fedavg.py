"""Per-FedAvg: its vectors by the steps that devices take, and the Hessian's part against autograd's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shared.algorithms import hyperparameters, per_fedavg
from shared.algorithms.device import personal_model, remember
from shared.algorithms.fedavg import FEDAVG
from shared.algorithms.per_fedavg import PER_FEDAVG, hessian_product
from shared.errors import ConfigError
from shared.model_state import state_tensors
from shared.models import build_model
from shared.training import Split, gradients, moving

BOTH = pytest.mark.parametrize("variant", ["hf", "fo"])


def model() -> nn.Module:
    return build_model("digitscnn", {"width": 4, "classes": 4}, seed=0)


def at_three(make_fleet: Callable[..., Any], quadratic: Any, **hyperparameters: Any) -> Any:
    """f(x) = 2/2 (x - 1)^2 and w = 3; one outer step a round."""
    given = {"epochs": 1, "alpha": 0.1, "lr": 0.5, **hyperparameters}
    return make_fleet(PER_FEDAVG, quadratic(3.0), [quadratic.split((2.0, 1.0))], **given)


@pytest.mark.parametrize(("steps", "adapted"), [(0, 3.0), (1, 2.6), (2, 2.28)])
def test_the_own_model_is_always_adapted(
    make_fleet: Callable[..., Any], quadratic: Any, steps: int, adapted: float
) -> None:
    """3 - .1 * 2 (3 - 1) = 2.6, during the run as in the end, from training data: the fleet's validation split is no
    data of this model at all."""
    fleet = at_three(make_fleet, quadratic, adapt_steps=steps)
    for final in (False, True):
        found = state_tensors(personal_model(fleet.setup, fleet.open(0, final=final))[0])
        assert found["weight"] == pytest.approx(adapted)


@pytest.mark.parametrize(("given", "after"), [({"variant": "fo"}, 1.4), ({"variant": "hf"}, 1.72), ({}, 1.72)])
def test_one_step_by_hand(make_fleet: Callable[..., Any], quadratic: Any, given: dict[str, str], after: float) -> None:
    """u = 2.6 and g = 3.2. FO: 3 - .5 * 3.2. HF, the default: the Hessian is 2, 3 - .5 (3.2 - .1 * 2 * 3.2). Had the
    inner step stayed in w, or had there been two outer ones, it would be lower."""
    fleet = at_three(make_fleet, quadratic, **given)
    fleet.round()
    assert fleet.aggregate.tensors["weight"] == pytest.approx(after, abs=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "given", "point"),
    [
        (PER_FEDAVG, {"variant": "hf", "alpha": 0.1}, 0.49 * 3 * 4 / (0.81 + 0.49 * 3)),
        (PER_FEDAVG, {"variant": "fo", "alpha": 0.1}, 2.8),
        (FEDAVG, {}, 3.0),
    ],
    ids=["hf", "fo", "fedavg"],
)
def test_where_two_devices_come_to_rest(
    make_fleet: Callable[..., Any], quadratic: Any, algorithm: Any, given: dict[str, Any], point: float
) -> None:
    """(a, b) = (1, 0) and (3, 4). HF weighs a device's pull a (w - b) by (1 - alpha a)^2: 2.578947."""
    splits = [quadratic.split((1.0, 0.0)), quadratic.split((3.0, 4.0))]
    fleet = make_fleet(algorithm, quadratic(1.0), splits, epochs=1, lr=0.3, **given)
    for _ in range(80):
        fleet.round()
    assert fleet.aggregate.tensors["weight"] == pytest.approx(point, abs=1e-6)


def test_the_hessians_product_of_a_quadratic() -> None:
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    hessian, at, direction = root @ root.T, *torch.randn(2, 6, dtype=torch.float64)
    (found,) = hessian_product(lambda point: (hessian @ point[0],), (at,), (direction,), 1e-3)
    torch.testing.assert_close(found, hessian @ direction, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_hessians_product_of_a_network(dropout: float) -> None:
    """Against autograd's, in float64, for the units that dropout leaves."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)).double()
    inputs, labels = torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 4
    parameters = tuple(network.parameters())
    direction = tuple(torch.randn_like(parameter) for parameter in parameters)
    torch.manual_seed(1)
    first = torch.autograd.grad(cross_entropy(network(inputs), labels), parameters, create_graph=True)
    along = sum((slope * way).sum() for slope, way in zip(first, direction, strict=True))
    assert isinstance(along, Tensor)
    expected = torch.autograd.grad(along, parameters)

    def gradient(at: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        torch.nn.utils.vector_to_parameters(torch.cat([part.flatten() for part in at]), network.parameters())
        return gradients(network, list(network.parameters()), inputs, labels)

    torch.manual_seed(1)
    start = tuple(parameter.detach().clone() for parameter in parameters)
    for found, exact in zip(hessian_product(gradient, start, direction, 1e-3), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


@BOTH
def test_without_an_inner_step_it_is_fedavg(make_fleet: Callable[..., Any], variant: str) -> None:
    """On D', bit for bit, statistics and counters included. Here D' is the only minibatch of an epoch."""
    ours = make_fleet(PER_FEDAVG, model(), epochs=1, batch_size=64, alpha=0.0, variant=variant)
    fedavg = make_fleet(FEDAVG, model(), epochs=1, batch_size=64)
    for _ in range(4):
        ours.round()
        fedavg.round()
        for name, array in fedavg.aggregate.tensors.items():
            assert np.array_equal(ours.aggregate.tensors[name], array), name


@BOTH
def test_only_the_pass_on_the_second_batch_shows_in_the_statistics(
    make_fleet: Callable[..., Any], variant: str
) -> None:
    """One outer step: the statistics are those of one pass through the adapted network, from where w's were."""
    data = Split(torch.randn(20, 1, 8, 8, dtype=torch.float64), torch.arange(20) % 4)
    fleet = make_fleet(PER_FEDAVG, model().double(), [data], epochs=1, batch_size=20, alpha=0.2, variant=variant)
    trained = fleet.round()[0].model.state_dict()
    expected, start = model().double(), dict(model().named_buffers())
    with moving(expected) as parameters:
        steps = gradients(expected, parameters, data.inputs, data.labels)  # D is all of the data, and so is D'
        expected.load_state_dict(start, strict=False)
        with torch.no_grad():
            torch._foreach_add_(tuple(parameters), steps, alpha=-0.2)
            expected(data.inputs)
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(trained[name], buffer)
    assert trained["1.num_batches_tracked"] == 1


@pytest.mark.parametrize(("variant", "passes"), [("hf", 4), ("fo", 2)])
def test_three_independent_batches(
    make_fleet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, variant: str, passes: int
) -> None:
    """The second pass of a step is on D', every third of FedAvg's batches; D and D'' are others, of the same size."""
    seen: list[set[float]] = []

    def watched(network: nn.Module, parameters: Any, inputs: Tensor, labels: Tensor) -> Any:
        seen.append(set(inputs[:, 0].tolist()))
        return gradients(network, parameters, inputs, labels)

    monkeypatch.setattr(per_fedavg, "gradients", watched)
    data = Split(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4)
    fleet = make_fleet(PER_FEDAVG, nn.Linear(3, 4), [data], batch_size=10, epochs=2, variant=variant)
    fleet.round()
    generator = torch.Generator().manual_seed(1000)  # the one of this round and device
    plain = [set(inputs[:, 0].tolist()) for _ in range(2) for inputs, _ in data.batches(10, generator)]
    steps = [seen[start : start + passes] for start in range(0, len(seen), passes)]
    assert [step[1] for step in steps] == plain[::3]
    assert {len(batch) for batch in seen} == {10}
    if variant == "hf":
        assert all(step[2] == step[3] for step in steps), "both sides of the difference are on D''"
    for first in (step[0] for step in steps):
        assert first not in plain
    distinct = {frozenset(batch) for step in steps for batch in step}
    assert len(distinct) == len(steps) * (passes // 2 + 1)


def test_the_hessians_part_makes_a_difference(make_fleet: Callable[..., Any]) -> None:
    found = []
    for variant in ("hf", "fo"):
        fleet = make_fleet(PER_FEDAVG, model(), variant=variant)
        fleet.round()
        found.append(fleet.aggregate.tensors["0.weight"])
    assert not np.array_equal(*found)


def test_the_device_remembers_nothing(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(PER_FEDAVG, model())
    assert remember(fleet.setup, fleet.round()[0]) == {}


def test_adapting_draws_from_the_training_split_alone(make_fleet: Callable[..., Any]) -> None:
    """The own model depends on nothing else; after the last round it is fine-tuned too, if that is wanted."""
    fleet = make_fleet(PER_FEDAVG, model(), alpha=0.1, finetune_epochs=1)
    fleet.round()
    adapted = state_tensors(personal_model(fleet.setup, fleet.open(0))[0])
    fleet.validation = Split(torch.full((4, 1, 8, 8), torch.nan), torch.zeros(4, dtype=torch.int64))
    again = state_tensors(personal_model(fleet.setup, fleet.open(0))[0])
    assert all(np.array_equal(again[name], array) for name, array in adapted.items())
    assert not np.array_equal(adapted["0.weight"], fleet.aggregate.tensors["0.weight"])
    final = state_tensors(personal_model(fleet.setup, fleet.open(0, final=True))[0])
    assert not np.array_equal(final["0.weight"], adapted["0.weight"])


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
def test_what_the_method_lacks_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = 0.9: .*the method has none"):
        hyperparameters(PER_FEDAVG, {name: 0.9})
