"""LG-FedAvg: devices learn representations of their own and share the layers that read them (Liang et al., 2019,
arXiv:2001.01523, algorithm 1).

The reverse of FedPer: the early layers are local, the later ones global. Both are trained together, in the same SGD.
So says the paper's text, and so does the authors' code for MNIST; which layers are early, `local` says, by default (our
choice) all before the first linear one. Their code for CIFAR-10 does the opposite, it shares the convolutions and keeps
every linear layer: list those in `local` to have it so, for example `local = ["fc1", "fc2", "fc3"]`.

As in the authors' code: SGD with momentum .5; updates weigh the same. It starts from a model that FedAvg has trained,
early layers included: give it as the run's `model.initial`. A cold start is another algorithm, and a weaker one.

Deviations: the authors report the round in which each device was best on its test data, here the last one counts; and
their "new test", an ensemble of all local models for a device that was never seen, is left out, since local models
never leave their devices. Without local layers it is FedAvg, without global ones local training.
"""

from pydantic import Field
from torch import nn

from shared.algorithms.base import Algorithm, Hyperparameters, Momentum, Weighting
from shared.partition import names_under, representation_names


class LGFedAvgHyperparameters(Hyperparameters):
    local: tuple[str, ...] | None = Field(
        None,
        description="modules that stay on the device; without it, all before the first linear layer",
        examples=[["fc1", "fc2"]],
    )
    momentum: Momentum = 0.5
    weighting: Weighting = "uniform"


def later_layers(model: nn.Module, hp: LGFedAvgHyperparameters) -> frozenset[str]:
    """Everything but the local representation."""
    local = representation_names(model) if hp.local is None else names_under(model, hp.local)
    return frozenset(model.state_dict()) - local


LG_FEDAVG = Algorithm(
    name="lg-fedavg",
    paper="arXiv:2001.01523",
    hyperparameters=LGFedAvgHyperparameters,
    share=later_layers,
    partial=True,
)
