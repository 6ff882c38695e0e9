"""What the tests of single algorithms share: whole rounds of a few devices, without worker or wire."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.aggregation import Aggregate, Update, WeightedMean
from shared.algorithms import Algorithm, DeviceRound
from shared.algorithms.device import Setup, open_round, remember, set_up
from shared.model_state import state_tensors
from shared.pruning import take
from shared.tensors import Masks, Subnet, Tensors
from shared.training import Split


def examples(count: int, seed: int, shape: tuple[int, ...] = (1, 8, 8), classes: int = 4) -> Split:
    """Noise around one random picture per class, the same pictures for every seed."""
    pictures = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return Split(pictures[labels] + 0.5 * torch.randn(count, *shape, generator=generator), labels)


class Quadratic(nn.Module):
    """One weight, and a loss that can be followed by hand: a/2 (weight - b)^2 + 1 for an example (a, b) of class 0.

    The scores (z, 0) have the cross entropy log(1 + exp(-z)); z is chosen such that this is the loss. float64.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight], dtype=torch.float64))

    def forward(self, examples: Tensor) -> Tensor:
        loss = examples[:, 0] / 2 * (self.weight - examples[:, 1]) ** 2 + 1
        return torch.stack([-torch.log(torch.expm1(loss)), torch.zeros_like(loss)], dim=1)

    @staticmethod
    def split(*curves: tuple[float, float]) -> Split:
        """Examples (a, b)."""
        return Split(torch.tensor(curves, dtype=torch.float64), torch.zeros(len(curves), dtype=torch.int64))


@pytest.fixture
def quadratic() -> type[Quadratic]:
    return Quadratic


@dataclass
class Fleet:
    """A coordinator and its devices, reduced to the algorithm: device i has `splits[i]` to train on."""

    setup: Setup
    splits: Sequence[Split]
    validation: Split
    aggregate: Aggregate = field(init=False)
    remembered: dict[int, Tensors] = field(default_factory=dict)
    number: int = 0
    latency: Callable[[Masks], float] | None = None

    def __post_init__(self) -> None:
        self.aggregate = Aggregate(state_tensors(self.setup.model, sorted(self.setup.shared)))

    @property
    def download(self) -> Subnet:
        """What is sent to a device of which nothing is known."""
        return self._cut(self.aggregate.alive if self.aggregate.valid is None else self.aggregate.valid)

    def sent(self, device: int) -> Subnet:
        """What is sent to a device: of that, the channels that it holds."""
        prefix = "held/"
        own = {path[len(prefix) :]: mask for path, mask in self.remembered.get(device, {}).items() if prefix in path}
        every = self.download.held
        if own and every:
            left = {group: mask & every[group] for group, mask in own.items()}
            keeps = self.aggregate.alive is not None
            own = {group: own[group] if keeps and not mask.any() else mask for group, mask in left.items()}
        return self._cut(own or every)

    def _cut(self, held: Masks | None) -> Subnet:
        if self.setup.layout is None or held is None:
            return Subnet(self.aggregate.tensors)
        return Subnet(take(self.aggregate.tensors, self.setup.layout, held), held)

    def open(self, device: int, received: Subnet | None = None, *, final: bool = False) -> DeviceRound:
        """The device's next round, with what it received in hand; without it, what it is sent."""
        return open_round(
            self.setup,
            self.sent(device) if received is None else received,
            self.remembered.get(device, {}),
            number=self.number,
            final=final,
            train=self.splits[device],
            validation=self.validation,
            multiple=2,
            latency=self.latency,
            generator=torch.Generator().manual_seed(1000 * self.number + device),
            check_time=lambda: None,
        )

    def round(self, weights: Sequence[float] | None = None) -> list[DeviceRound]:
        """Every device trains and uploads; what it weighs is its examples, or `weights`."""
        self.number += 1
        accumulator = self.setup.algorithm.aggregate(self.setup.layout, self.setup.hp, WeightedMean)
        rounds = [self.open(device) for device in range(len(self.splits))]
        for device, round_ in enumerate(rounds):
            self.setup.algorithm.train(round_, self.setup.hp)
            weight = float(len(round_.train)) if weights is None else weights[device]
            accumulator.add(Update(self.setup.algorithm.upload(round_, self.setup.hp), weight))
            self.remembered[device] = remember(self.setup, round_)
        self.aggregate = accumulator.result(self.aggregate.tensors)
        return rounds


class MakeFleet:
    def __call__(
        self,
        algorithm: Algorithm,
        model: nn.Module,
        splits: Sequence[Split] = (),
        *,
        example: Tensor | None = None,
        **hyperparameters: Any,
    ) -> Fleet:
        """A fleet whose devices have these splits, or 24, 40 and 9 examples of 8x8 pictures of four classes."""
        splits = splits or [examples(count, seed) for seed, count in enumerate((24, 40, 9))]
        hp = algorithm.hyperparameters.model_validate(hyperparameters)
        example = splits[0].inputs[:2] if example is None else example
        return Fleet(set_up(algorithm, hp, model, example), splits, validation=examples(32, 77))


@pytest.fixture
def make_fleet() -> MakeFleet:
    return MakeFleet()
