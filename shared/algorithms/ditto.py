"""Ditto: beside the global model w, each device trains a model v of its own, held close to what it received
(Li et al., ICML 2021, arXiv:2012.04221, algorithms 1 and 2).

w is FedAvg's, bit for bit, whatever lambda is. On the same minibatches, with the anchor fixed for the round,

    v <- v - eta (grad F(v) + lambda (v - w_received))

v starts where w does, at what the device received when it first took part; it is remembered and never travels. In the
end, and whenever it is evaluated, the device's own model is v.

Reading: the paper takes s steps on v; here they are as many as those on w. The pull is part of the gradient, so
momentum and weight decay, which the paper does not have, treat it as such. BatchNorm's scale and shift are pulled like
all parameters, its statistics are v's own. Where `proximal` lists several values, the one with the lowest loss on the
validation split is chosen anew in every round.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, TypeAlias

from pydantic import Field
from torch import Tensor, nn

from shared.algorithms.base import Algorithm, DeviceRound, Hyperparameters, Weighting, finetuned, local_sgd
from shared.algorithms.base import train as train_everything
from shared.model_state import load_tensors, state_tensors
from shared.training import evaluate

Pull: TypeAlias = Annotated[float, Field(ge=0)]


class DittoHyperparameters(Hyperparameters):
    proximal: Pull | Annotated[tuple[Pull, ...], Field(min_length=1)] = Field(
        0.1,
        description="lambda, how strongly the own model is pulled to the received one; of several, "
        "the best on the validation split",
        examples=[[0.1, 1.0, 2.0]],
    )
    weighting: Weighting = "uniform"


def train(round_: DeviceRound, hp: DittoHyperparameters) -> None:
    """FedAvg's round of w; then one of v for each lambda, on the same minibatches, of which the best stays."""
    own, anchor = own_model(round_), [parameter.detach().clone() for parameter in round_.model.parameters()]
    same = round_.generator.clone_state()
    train_everything(round_, hp)
    choices = hp.proximal if isinstance(hp.proximal, tuple) else (hp.proximal,)
    tried = [_pulled(own, anchor, replace(round_, generator=same.clone_state()), hp, choice) for choice in choices]
    best = tried[0] if len(tried) == 1 else min(tried, key=lambda model: evaluate(model, round_.validation).loss)
    round_.memory["own"] = state_tensors(best)


def personalize(round_: DeviceRound, hp: DittoHyperparameters) -> nn.Module:
    """v; after the last round, fine-tuned if that is wanted."""
    return finetuned(replace(round_, model=own_model(round_)), hp)


def own_model(round_: DeviceRound) -> nn.Module:
    """v, as it is remembered; a device that has none starts from what it received."""
    model = copy.deepcopy(round_.model)
    load_tensors(model, round_.memory.get("own", {}))
    return model


def _pulled(
    own: nn.Module, anchor: Sequence[Tensor], round_: DeviceRound, hp: DittoHyperparameters, proximal: float
) -> nn.Module:
    """A copy of v after one round with this lambda."""
    model = copy.deepcopy(own)

    def pull() -> None:
        for parameter, fixed in zip(model.parameters(), anchor, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - fixed, alpha=proximal)

    local_sgd(model, round_, hp, epochs=hp.epochs, before_step=pull)
    return model


# not partial: the own model comes last, so whoever ran out of time would never train it
DITTO = Algorithm(
    name="ditto",
    paper="arXiv:2012.04221",
    hyperparameters=DittoHyperparameters,
    train=train,
    personalize=personalize,
)
