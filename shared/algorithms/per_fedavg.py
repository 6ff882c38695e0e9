"""Per-FedAvg: the devices learn a model that is good after one step of gradient descent on the data of any of them
(Fallah, Mokhtari, Ozdaglar, NeurIPS 2020, arXiv:2002.07948, algorithm 1 and section 5).

In every local step, with three independent minibatches D, D' and D'',

    u = w - alpha grad f(w; D)
    g = grad f(u; D')
    w <- w - beta g                                      variant FO, first order
    w <- w - beta (g - alpha H(w; D'') g)                variant HF, with the product of Hessian and g approximated:
    H(w; D'') g = [grad f(w + delta g; D'') - grad f(w - delta g; D'')] / (2 delta)

A device remembers nothing. Its own model is always the received one after `adapt_steps` steps of size alpha on its
training data, during the run and in the end; beta is called `lr`. With alpha = 0 it is FedAvg on D', bit for bit.

Readings: an epoch pays for three minibatches a step, so D' is every third one of FedAvg's, and tau a third of its
steps; D and D'' are drawn for each step by themselves, so that a device with a single minibatch takes part. Momentum
and weight decay, of which the paper's steps have none, are refused. Every pass is made through a copy of the network,
so nothing but the outer step moves w; of BatchNorm's statistics only those of the pass on D' are kept, because they
belong to the adapted network, which is the one that is evaluated. HF diverges, and says so, where alpha is large beside
the curvature of the loss.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from shared.algorithms.base import Algorithm, DeviceRound, Hyperparameters, Weighting, finetuned, local_batches
from shared.training import gradients, moving

Point: TypeAlias = tuple[Tensor, ...]
"""Values of all parameters that move, or a direction in their space."""
Batch: TypeAlias = tuple[Tensor, Tensor]


class PerFedAvgHyperparameters(Hyperparameters):
    variant: Literal["hf", "fo"] = Field(
        "hf", description="the Hessian's part of the gradient: approximated by differences (hf), or left out (fo)"
    )
    alpha: float = Field(0.01, ge=0, description="size of the step that adapts the model to a device")
    delta: float = Field(1e-3, gt=0, description="how far apart, in gradients, hf takes its difference")
    adapt_steps: int = Field(1, ge=0, description="steps of size alpha that make the device's own model")
    momentum: float = Field(0.0, ge=0, le=0, description="the method has none")
    weight_decay: float = Field(0.0, ge=0, le=0, description="the method has none")
    weighting: Weighting = "uniform"


def train(round_: DeviceRound, hp: PerFedAvgHyperparameters) -> None:
    """`epochs` epochs, of an outer step for every third minibatch."""
    model, draw = round_.model, _independent_batches(round_, hp.batch_size)
    with moving(model) as parameters:
        network, w = copy.deepcopy(model), tuple(parameters)
        point = [parameter for parameter in network.parameters() if parameter.requires_grad]

        def gradient(at: Point, batch: Batch) -> Point:
            """grad f(at; batch), by the network: its statistics start from those of w, and move."""
            with torch.no_grad():
                torch._foreach_copy_(tuple(point), at)
                for buffer, original in zip(network.buffers(), model.buffers(), strict=True):
                    buffer.copy_(original)
            return gradients(network, point, *batch)

        for batch in islice(local_batches(model, round_, hp, epochs=hp.epochs), 0, None, 3):
            adapted = _moved(w, gradient(w, draw()), -hp.alpha)
            outer = gradient(adapted, batch)
            statistics = [buffer.clone() for buffer in network.buffers()]
            if hp.variant == "hf":
                curved = hessian_product(partial(gradient, batch=draw()), w, outer, hp.delta)
                outer = _moved(outer, curved, -hp.alpha)
            with torch.no_grad():
                torch._foreach_add_(w, outer, alpha=-hp.lr)
                for buffer, new in zip(model.buffers(), statistics, strict=True):
                    buffer.copy_(new)


def personalize(round_: DeviceRound, hp: PerFedAvgHyperparameters) -> nn.Module:
    """The received model, adapted; after the last round, fine-tuned if that is wanted."""
    model = copy.deepcopy(round_.model)
    with moving(model) as parameters:
        for batch in islice(local_batches(model, round_, hp, epochs=hp.adapt_steps), hp.adapt_steps):
            step = gradients(model, parameters, *batch)
            with torch.no_grad():
                torch._foreach_add_(tuple(parameters), step, alpha=-hp.alpha)
    return finetuned(replace(round_, model=model), hp)


def hessian_product(gradient: Callable[[Point], Point], at: Point, direction: Point, delta: float) -> Point:
    """The Hessian at a point times a direction, from the gradients `delta` times the direction before and after it."""
    drawn = torch.get_rng_state()
    ahead = gradient(_moved(at, direction, delta))
    torch.set_rng_state(drawn)  # dropout has to drop the same units twice, or the difference would be of that
    behind = gradient(_moved(at, direction, -delta))
    return torch._foreach_div(torch._foreach_sub(ahead, behind), 2 * delta)


@torch.no_grad()
def _moved(point: Point, direction: Point, by: float) -> Point:
    return torch._foreach_add(point, direction, alpha=by)


def _independent_batches(round_: DeviceRound, size: int) -> Callable[[], Batch]:
    """Draws a minibatch that has nothing to do with those of the epoch, and leaves the round's generator alone."""
    seed = int(torch.randint(2**62, (), generator=round_.generator.clone_state()))
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Batch:
        chosen = torch.randperm(len(round_.train), generator=generator)[:size]
        return round_.train.inputs[chosen], round_.train.labels[chosen]

    return draw


PER_FEDAVG = Algorithm(
    name="per-fedavg",
    paper="arXiv:2002.07948",
    hyperparameters=PerFedAvgHyperparameters,
    train=train,
    personalize=personalize,
    partial=True,  # every outer step is complete in itself
)
