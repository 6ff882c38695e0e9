"""APFL: its vectors by the steps that devices take, its two ends, and the derivative that alpha learns from."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shared.algorithms import hyperparameters
from shared.algorithms.apfl import APFL, MixedLogits, MixedParameters
from shared.algorithms.device import personal_model
from shared.algorithms.fedavg import FEDAVG
from shared.errors import ConfigError
from shared.model_state import state_tensors
from shared.models import build_model
from shared.tensors import Tensors
from shared.training import Split, moving, sgd


def model() -> nn.Module:
    return build_model("digitscnn", {"width": 4, "classes": 4}, seed=0)


def own(fleet: Any, device: int) -> Tensors:
    """v as the device remembers it."""
    prefix = "own/"
    return {path[len(prefix) :]: array for path, array in fleet.remembered[device].items() if path.startswith(prefix)}


def same(found: Tensors, expected: Tensors) -> bool:
    """But for counters, which take the maximum."""
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], array) for name, array in expected.items() if array.dtype.kind == "f"
    )


def apart(make_fleet: Callable[..., Any], quadratic: Any, **hyperparameters: Any) -> Any:
    """f(x) = (x - 3)^2 / 2, w = 0, v = 2 and alpha = .25."""
    given = {"lr": 0.1, "epochs": 1, **hyperparameters}
    fleet = make_fleet(APFL, quadratic(0.0), [quadratic.split((1.0, 3.0))], **given)
    fleet.remembered[0] = {"own/weight": np.array([2.0]), "mixing/alpha": np.array(0.25)}
    return fleet


def test_the_own_model_is_the_mixture(make_fleet: Callable[..., Any], quadratic: Any) -> None:
    """.25 * 2 + .75 * 0 = .5: neither v nor w, before training as after the last round."""
    fleet = apart(make_fleet, quadratic)
    for final in (False, True):
        mixture = personal_model(fleet.setup, fleet.open(0, final=final))[0]
        assert state_tensors(mixture)["weight"] == pytest.approx(0.5)
    assert own(fleet, 0)["weight"] == 2, "the mixture does not take the place of v"


def test_one_step_by_hand(make_fleet: Callable[..., Any], quadratic: Any) -> None:
    """grad f(vbar) = -2.5, times alpha -.625: v = 2.0625. w = 0 + .1 * 3. dL/dalpha = 2 * -2.5 = -5: alpha = .75.
    Two steps on one gradient, or gradients after something has moved, would give other numbers."""
    fleet = apart(make_fleet, quadratic)
    fleet.round()
    assert own(fleet, 0)["weight"] == pytest.approx(2.0625)
    assert fleet.aggregate.tensors["weight"] == pytest.approx(0.3)
    assert fleet.remembered[0]["mixing/alpha"] == pytest.approx(0.75)


# After the first step w = .3, v = 2.0625 and alpha = .75, so vbar = 1.621875 and dL/dalpha = 1.7625 * -1.378125.
@pytest.mark.parametrize(
    ("update", "alphas"),
    [
        ("step", [0.25, 0.75, 0.75 + 0.1 * 1.7625 * 1.378125]),
        ("round", [0.25, 0.75, 0.75]),
        ("fixed", [0.25, 0.25, 0.25]),
    ],
)
def test_when_alpha_learns(make_fleet: Callable[..., Any], quadratic: Any, update: str, alphas: list[float]) -> None:
    for epochs, alpha in enumerate(alphas):
        fleet = apart(make_fleet, quadratic, alpha_update=update, epochs=epochs)
        fleet.round()
        assert fleet.remembered[0]["mixing/alpha"] == pytest.approx(alpha)


@pytest.mark.parametrize(("minimum", "end"), [(30.0, 1.0), (-30.0, 0.0)])
def test_alpha_stays_between_0_and_1(
    make_fleet: Callable[..., Any], quadratic: Any, minimum: float, end: float
) -> None:
    fleet = apart(make_fleet, quadratic, alpha_lr=1.0)
    fleet.splits = [quadratic.split((1.0, minimum))]
    fleet.round()
    assert fleet.remembered[0]["mixing/alpha"] == end


def test_alpha_is_remembered(make_fleet: Callable[..., Any], quadratic: Any) -> None:
    fleet = make_fleet(APFL, quadratic(0.0), [quadratic.split((1.0, 3.0))], alpha=0.4, epochs=0)
    fleet.round()
    assert fleet.remembered[0]["mixing/alpha"] == 0.4
    fleet.remembered[0]["mixing/alpha"] = np.array(0.9)
    fleet.round()
    assert fleet.remembered[0]["mixing/alpha"] == 0.9


@pytest.mark.parametrize("mix", ["parameters", "logits"])
def test_alpha_0_is_fedavg(make_fleet: Callable[..., Any], mix: str) -> None:
    """The mixture is FedAvg's local model, before and after training; v never moves from where it started."""
    apfl = make_fleet(APFL, model(), alpha=0.0, alpha_update="fixed", mix=mix)
    fedavg = make_fleet(FEDAVG, model())
    parameters = dict(model().named_parameters())
    for _ in range(2):
        for trained, plain in zip(apfl.round(), fedavg.round(), strict=True):
            mixture, expected = state_tensors(personal_model(apfl.setup, trained)[0]), state_tensors(plain.model)
            if mix == "logits":  # the statistics are those of v there
                mixture, expected = ({name: tensors[name] for name in parameters} for tensors in (mixture, expected))
            assert same(mixture, expected)
        for device in range(3):
            before = state_tensors(personal_model(apfl.setup, apfl.open(device))[0])
            assert same(
                {name: before[name] for name in parameters}, state_tensors(fedavg.open(device).model, parameters)
            )
            assert all(np.array_equal(own(apfl, device)[name], start.detach()) for name, start in parameters.items())


@pytest.mark.parametrize("mix", ["parameters", "logits"])
def test_alpha_1_is_local_training(make_fleet: Callable[..., Any], mix: str) -> None:
    fleet = make_fleet(APFL, model(), alpha=1.0, alpha_update="fixed", mix=mix)
    alone = [model() for _ in fleet.splits]
    for number in (1, 2):
        fleet.round()
        for device, network in enumerate(alone):
            sgd(
                network,
                fleet.splits[device],
                epochs=2,
                lr=0.05,
                batch_size=16,
                generator=torch.Generator().manual_seed(1000 * number + device),
                check_time=lambda: None,
            )
            assert same(own(fleet, device), state_tensors(network)), "statistics included"
            assert same(state_tensors(personal_model(fleet.setup, fleet.open(device))[0]), state_tensors(network))


@pytest.mark.parametrize("mix", ["parameters", "logits"])
@pytest.mark.parametrize("update", ["step", "round", "fixed"])
def test_what_travels_is_fedavg_bit_for_bit(make_fleet: Callable[..., Any], mix: str, update: str) -> None:
    """Statistics and counters included: no pass through the mixture shows in them."""
    apfl, fedavg = make_fleet(APFL, model(), mix=mix, alpha_update=update), make_fleet(FEDAVG, model())
    for _ in range(2):
        apfl.round()
        fedavg.round()
        for name, array in fedavg.aggregate.tensors.items():
            assert np.array_equal(apfl.aggregate.tensors[name], array), name
    assert apfl.aggregate.tensors.keys() == fedavg.aggregate.tensors.keys()


def test_a_device_without_memory_has_what_it_received(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(APFL, model())
    fleet.round()
    fleet.remembered.clear()
    assert same(state_tensors(personal_model(fleet.setup, fleet.open(0, final=True))[0]), fleet.aggregate.tensors)


def test_statistics_are_mixed_like_parameters(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(APFL, model(), alpha=0.25, alpha_update="fixed")
    fleet.round()
    mixture = state_tensors(personal_model(fleet.setup, fleet.open(0))[0])
    for name in ("0.weight", "1.weight", "1.running_mean", "1.running_var"):
        expected = 0.25 * own(fleet, 0)[name] + 0.75 * fleet.aggregate.tensors[name]
        np.testing.assert_allclose(mixture[name], expected, rtol=1e-5, atol=1e-7)
        assert not np.array_equal(own(fleet, 0)[name], fleet.aggregate.tensors[name])


class Mixed:
    """w and v of a small network in float64, and the loss of their mixture."""

    def __init__(self, mix: str) -> None:
        torch.manual_seed(1)
        self.w, self.v = (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double() for _ in range(2))
        self.batch = torch.randn(7, 3, dtype=torch.float64), torch.arange(7) % 4
        self.mix = mix

    def slopes(self, alpha: float) -> tuple[tuple[Tensor, ...], float]:
        with moving(self.w) as w, moving(self.v) as v:
            kind = MixedParameters if self.mix == "parameters" else MixedLogits
            return kind(self.w, self.v, w, v).slopes(alpha, *self.batch)

    @torch.no_grad()
    def loss(self, alpha: float, along: tuple[Tensor, ...] | None = None, by: float = 0.0) -> float:
        """Written down a second time; `along` and `by` move v."""
        v = [value + by * step for value, step in zip(self.v.parameters(), along or self.v.parameters(), strict=True)]
        inputs, labels = self.batch

        def network(parts: Sequence[Tensor]) -> Tensor:
            return torch.tanh(inputs @ parts[0].T + parts[1]) @ parts[2].T + parts[3]

        w = list(self.w.parameters())
        if self.mix == "parameters":
            outputs = network([alpha * mine + (1 - alpha) * theirs for mine, theirs in zip(v, w, strict=True)])
        else:
            outputs = alpha * network(v) + (1 - alpha) * network(w)
        return cross_entropy(outputs, labels).item()


@pytest.mark.parametrize("mix", ["parameters", "logits"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.75, 1.0])
def test_derivatives_against_finite_differences(mix: str, alpha: float) -> None:
    mixed, step = Mixed(mix), 1e-5
    at_v, at_alpha = mixed.slopes(alpha)
    numeric = (mixed.loss(alpha + step) - mixed.loss(alpha - step)) / (2 * step)
    assert at_alpha == pytest.approx(numeric, rel=1e-6)
    along = tuple(torch.randn_like(part) for part in at_v)
    numeric = (mixed.loss(alpha, along, step) - mixed.loss(alpha, along, -step)) / (2 * step)
    assert sum((part * way).sum().item() for part, way in zip(at_v, along, strict=True)) == pytest.approx(
        numeric, rel=1e-6, abs=1e-12
    )


def test_for_a_linear_model_both_mixtures_are_one(make_fleet: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    data = Split(torch.randn(30, 3, generator=generator), torch.randint(0, 4, (30,), generator=generator))
    found = []
    for mix in ("parameters", "logits"):
        torch.manual_seed(0)
        fleet = make_fleet(APFL, nn.Linear(3, 4), [data], mix=mix, alpha_lr=0.5)
        fleet.round()
        fleet.round()
        found.append(fleet.remembered[0])
    for path, array in found[0].items():
        np.testing.assert_allclose(found[1][path], array, rtol=1e-4, atol=1e-6)
    assert abs(found[0]["mixing/alpha"] - 0.5) > 1e-3


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
def test_what_is_not_defined_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} = 0.1: .*not defined for a mixture"):
        hyperparameters(APFL, {name: 0.1})
