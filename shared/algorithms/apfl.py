"""APFL: each device mixes the global model w with a model v of its own (Deng, Kamani, Mahdavi, 2020,
arXiv:2003.13461, algorithm 1).

In every local step, on one minibatch, with all gradients taken before anything moves,

    vbar  = alpha v + (1 - alpha) w
    w     <- w - eta grad f(w)
    v     <- v - eta alpha grad f(vbar)                            the factor alpha is the chain rule
    alpha <- clip(alpha - eta_a <v - w, grad f(vbar)>, 0, 1)       unless it is fixed

w is FedAvg's, bit for bit. v and alpha are remembered and never travel; v starts where w does, at what the device
received when it first took part. The device's own model is vbar of the newest w: one network, so it can be exported.

With `mix = "logits"`, as in the authors' code, v and alpha are trained on the loss of alpha v(x) + (1 - alpha) w(x).
Two networks are no network, so what is evaluated and exported is vbar here too; the two agree for a linear model only.

Deviations: momentum and weight decay are refused, because a vbar of two velocities is not defined. BatchNorm's scale
and shift are mixed like all parameters. Its statistics are gathered by the passes through vbar (with `logits`, through
v), and remembered with v; whatever is received, its statistics are mixed with them by alpha. Counters take the maximum.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from shared.algorithms.base import Algorithm, DeviceRound, Hyperparameters, Weighting, finetuned, local_batches
from shared.model_state import load_tensors, state_tensors
from shared.training import gradients, moving

Parameters: TypeAlias = Sequence[nn.Parameter]
Slopes: TypeAlias = tuple[tuple[Tensor, ...], float]
"""Derivatives of the mixture's loss: with respect to v, and to alpha."""


class APFLHyperparameters(Hyperparameters):
    alpha: float = Field(0.5, ge=0, le=1, description="share of the own model in the mixture, at the start")
    alpha_update: Literal["step", "round", "fixed"] = Field(
        "step", description="when alpha learns: in every local step, in the first one of a round, or never"
    )
    alpha_lr: float | None = Field(None, gt=0, description="learning rate of alpha; without it, lr", examples=[0.01])
    mix: Literal["parameters", "logits"] = Field(
        "parameters", description="what is mixed in training: the parameters of both models, or their outputs"
    )
    momentum: float = Field(0.0, ge=0, le=0, description="not defined for a mixture of two models")
    weight_decay: float = Field(0.0, ge=0, le=0, description="not defined for a mixture of two models")
    weighting: Weighting = "uniform"


def train(round_: DeviceRound, hp: APFLHyperparameters) -> None:
    """`epochs` epochs of steps on w, v and alpha."""
    alpha, rate = mixing(round_, hp), hp.lr if hp.alpha_lr is None else hp.alpha_lr
    own = own_model(round_, alpha)
    with moving(round_.model) as w, moving(own) as v:
        mixture = (MixedParameters if hp.mix == "parameters" else MixedLogits)(round_.model, own, w, v)
        for step, (inputs, labels) in enumerate(local_batches(round_.model, round_, hp, epochs=hp.epochs)):
            at_w = gradients(round_.model, w, inputs, labels)
            at_v, slope = mixture.slopes(alpha, inputs, labels)
            with torch.no_grad():
                torch._foreach_add_(tuple(w), at_w, alpha=-hp.lr)
                torch._foreach_add_(tuple(v), at_v, alpha=-hp.lr)
            if hp.alpha_update == "step" or (hp.alpha_update == "round" and step == 0):
                alpha = min(max(alpha - rate * slope, 0.0), 1.0)
    round_.memory["own"] = state_tensors(own)
    round_.memory["mixing"] = {"alpha": np.array(alpha)}


@torch.no_grad()
def personalize(round_: DeviceRound, hp: APFLHyperparameters) -> nn.Module:
    """vbar; after the last round, fine-tuned if that is wanted."""
    alpha = mixing(round_, hp)
    mixture = own_model(round_, alpha)
    for own, received in zip(mixture.parameters(), round_.model.parameters(), strict=True):
        own.copy_(torch.lerp(received, own, alpha))
    with torch.enable_grad():
        return finetuned(replace(round_, model=mixture), hp)


def mixing(round_: DeviceRound, hp: APFLHyperparameters) -> float:
    """alpha, as it is remembered or as it starts."""
    remembered = round_.memory.get("mixing")
    return hp.alpha if remembered is None else float(remembered["alpha"])


@torch.no_grad()
def own_model(round_: DeviceRound, alpha: float) -> nn.Module:
    """v as it is remembered, or what was received; with the statistics of the mixture."""
    model = copy.deepcopy(round_.model)
    load_tensors(model, round_.memory.get("own", {}))
    for own, received in zip(model.buffers(), round_.model.buffers(), strict=True):
        own.copy_(torch.lerp(received, own, alpha) if own.is_floating_point() else torch.maximum(received, own))
    return model


class MixedParameters:
    """f((alpha v + (1 - alpha) w)(x)): one network, whose statistics are those of `own`."""

    def __init__(self, model: nn.Module, own: nn.Module, w: Parameters, v: Parameters) -> None:
        self._network, self._w, self._v = _twin(own, own.buffers()), tuple(w), tuple(v)
        self._vbar = [parameter for parameter in self._network.parameters() if parameter.requires_grad]

    def slopes(self, alpha: float, inputs: Tensor, labels: Tensor) -> Slopes:
        with torch.no_grad():
            torch._foreach_copy_(tuple(self._vbar), torch._foreach_lerp(self._w, self._v, alpha))
        at_vbar = gradients(self._network, self._vbar, inputs, labels)
        with torch.no_grad():
            slope = torch.dot(_flat(self._v) - _flat(self._w), _flat(at_vbar))
            return torch._foreach_mul(at_vbar, alpha), slope.item()


class MixedLogits(nn.Module):
    """f(alpha v(x) + (1 - alpha) w(x)): two networks. The pass through w leaves no trace in its statistics."""

    def __init__(self, model: nn.Module, own: nn.Module, w: Parameters, v: Parameters) -> None:
        super().__init__()
        self._own, self._other, self._v = own, _twin(model, model.parameters()), v
        self._alpha = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            other = self._other(inputs)
        mixed: Tensor = self._alpha * self._own(inputs) + (1 - self._alpha) * other
        return mixed

    def slopes(self, alpha: float, inputs: Tensor, labels: Tensor) -> Slopes:
        nn.init.constant_(self._alpha, alpha)
        *at_v, slope = gradients(self, [*self._v, self._alpha], inputs, labels)
        return tuple(at_v), slope.item()


def _twin(model: nn.Module, common: Iterable[Tensor]) -> nn.Module:
    """A copy of the model that has these tensors in common with it."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in common})


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


# not partial: v and alpha are remembered at the end, so whoever ran out of time would only train w
APFL = Algorithm(
    name="apfl",
    paper="arXiv:2003.13461",
    hyperparameters=APFLHyperparameters,
    train=train,
    personalize=personalize,
)
