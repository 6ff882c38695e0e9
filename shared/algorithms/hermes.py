"""Hermes: every device finds its own channel-pruned subnetwork, and only what overlaps is averaged.

After the abstract of Li et al., "Hermes: an efficient federated learning framework for heterogeneous mobile clients",
MobiCom 2021. What it leaves open, we read as follows:

- Structured means coupled channel groups: a channel goes with its bias, its BatchNorm coordinates and the inputs of
  every layer that consumes it. The classifier's rows and the model's input always stay (shared.channels).
- Channels are chosen by magnitude (shared.selection), of the values that were received: they are the same on all
  devices, so that devices agree as far as their amounts do.
- A device prunes a step further in a round when what it received reaches `accuracy_threshold` on its own validation
  split, until it is down to `target`. Masks only shrink; survivors keep their values.
- Overlapped is, as `overlap` says, what several participants of the round hold (`agreed`, `any`: the mean over those
  who hold it), or what all of them do (`all`, the literal reading; elsewhere a device keeps its own values). With
  `agreed` a device also gives up what nobody who took part in the last round holds.
- With `agreed`, the last step of pruning is each device's own: what is averaged is pruned to `target` and
  `personal_amount`, and after the last round every device goes on to `target` in the middle of its fine-tuning, by the
  values that are its own by then.

Deviations: the device trains the physically shrunk network, which is the same as training the masked one, only faster;
it may start shrunk, where its memory does not suffice for more; channel counts are rounded up to what its runtime
likes; updates weigh by their examples unless `weighting` says otherwise; and after the last round `finetune_epochs` on
the device's own data make the shrunk network its own.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import AfterValidator, Field
from torch import nn

from shared.aggregation import Accumulator, Overlap, Rule
from shared.algorithms.base import Algorithm, DeviceRound, FinetuneEpochs, Hyperparameters, finetuned, local_sgd
from shared.algorithms.base import train as train_everything
from shared.channels import ChannelLayout
from shared.errors import TrainingError
from shared.model_state import load_tensors, state_tensors, state_views
from shared.pruning import put, shrink, take
from shared.selection import Cost, choose, mac_cost, parameter_cost
from shared.tensors import Masks, Subnet, Tensors
from shared.training import evaluate

OWN, BEGINNING = "own", "beginning"
"""Groups of the memory: own values with Overlap.ALL, and the latency that pruning began at."""
CLOSE = 1.05
"""A measured latency so close to its goal has reached it: measured again, it might have."""


def _one_share_or_time(target: dict[str, float]) -> dict[str, float]:
    if len(target) != 1:
        raise ValueError(
            f"{len(target)} amounts; give exactly one, as {{parameters = 0.25}}, {{macs = 0.25}} or {{latency_ms = 5}}"
        )
    ((unit, amount),) = target.items()
    if amount <= 0:
        raise ValueError(f"{unit} must be above 0: something has to stay")
    if unit != "latency_ms" and amount > 1:
        raise ValueError(f"{unit} is a share of the dense network and at most 1")
    return target


Target: TypeAlias = Annotated[
    dict[Literal["parameters", "macs", "latency_ms"], float], AfterValidator(_one_share_or_time)
]


class HermesHyperparameters(Hyperparameters):
    target: Target = Field(
        {"parameters": 0.25},
        description="what a device keeps in the end: a share of the dense network's `parameters` or `macs`, or as much "
        "as it runs in `latency_ms`",
    )
    pruning_amount: float = Field(0.1, gt=0, le=1, description="share of the dense network removed in one step")
    accuracy_threshold: float = Field(0.0, ge=0, le=1, description="validation accuracy that allows a step")
    personal_amount: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="share of the dense network that a device removes last, by itself, after the last round; where "
        "`overlap` is `agreed`",
    )
    overlap: Overlap = Field(
        Overlap.AGREED,
        description="what is averaged: coordinates held by `any` of the round's devices, or by `all`; `agreed`: by "
        "any, and what none of them holds is given up",
    )
    multiple: int | None = Field(
        None,
        ge=1,
        description="kept channels are rounded up to this; without it, to what the device's profile names",
        examples=[8],
    )
    finetune_epochs: FinetuneEpochs = 5

    @property
    def own_step(self) -> float:
        """Share of the dense network that is removed after the last round."""
        return self.personal_amount if self.overlap is Overlap.AGREED else 0.0


def receive(round_: DeviceRound, hp: HermesHyperparameters) -> None:
    """Own values, and received ones in place of them where there are any; of both, the channels that are held."""
    own = Subnet(round_.memory.get(OWN, {}), round_.held)
    if hp.overlap is Overlap.AGREED:
        _become(round_, _agreed(round_.held, round_.received.held))
    load_tensors(round_.model, _laid(round_, own, round_.received, held=round_.held))


def train(round_: DeviceRound, hp: HermesHyperparameters) -> None:
    """Prune a step further if the model is good enough, then train what is left."""
    _prune(round_, hp)
    train_everything(round_, hp)
    if hp.overlap is Overlap.ALL:
        round_.memory[OWN] = state_tensors(round_.model, round_.received.tensors)


def personalize(round_: DeviceRound, hp: HermesHyperparameters) -> nn.Module:
    """Fine-tuned after the last round; a third of it before the last step of pruning, where that is the device's own,
    the rest after it. `round_.held` becomes what the model holds."""
    if not round_.final or not hp.own_step:
        return finetuned(round_, hp)
    before = hp.finetune_epochs // 3
    round_.model = copy.deepcopy(round_.model)
    local_sgd(round_.model, round_, hp, epochs=before)
    amount = _amount(round_, hp)
    if amount.cost(round_.held or _layout(round_).full()) > amount.reached:
        _cut(round_, hp, amount, amount.target)
    local_sgd(round_.model, round_, hp, epochs=hp.finetune_epochs - before)
    return round_.model


def aggregate(layout: ChannelLayout | None, hp: HermesHyperparameters, rule: Rule) -> Accumulator:
    """The mean over the devices that hold a coordinate, or over all of them where all hold it."""
    return rule(layout, overlap=hp.overlap)


def _agreed(own: Masks | None, received: Masks | None) -> Masks | None:
    """What a device holds and was sent. A group of which nothing is left to it begins anew with what was sent."""
    if own is None or received is None:
        return received if own is None else own
    both = {group: mask & received[group] for group, mask in own.items()}
    return {group: mask if mask.any() else received[group] for group, mask in both.items()}


@dataclass(frozen=True)
class _Amount:
    """How much is pruned, in the unit of `cost`.

    target   what is kept in the end
    reached  costs up to here count as the target
    whole    the cost before the first step, where it is this much now
    """

    cost: Cost
    target: float
    reached: float
    whole: Callable[[float], float]


def _prune(round_: DeviceRound, hp: HermesHyperparameters) -> None:
    """One step towards what is averaged in the end, chosen by the values in hand: those that were received."""
    amount = _amount(round_, hp)
    now = amount.cost(round_.held or _layout(round_).full())
    later = hp.own_step * amount.whole(now)
    if now <= amount.reached + later or not _good_enough(round_, hp):
        return
    _cut(round_, hp, amount, max(amount.target + later, now - hp.pruning_amount * amount.whole(now)))


def _good_enough(round_: DeviceRound, hp: HermesHyperparameters) -> bool:
    threshold = hp.accuracy_threshold
    return not threshold or evaluate(round_.model, round_.validation).accuracy >= threshold


def _cut(round_: DeviceRound, hp: HermesHyperparameters, amount: _Amount, goal: float) -> None:
    """Drop channels until the cost is down to the goal, chosen by the values in hand, with the target in view."""
    layout = _layout(round_)
    dense = state_tensors(round_.initial)
    put(dense, Subnet(state_views(round_.model), round_.held), layout)
    multiple = hp.multiple or round_.multiple
    held = choose(dense, layout, round_.held, cost=amount.cost, goal=goal, then=amount.target, multiple=multiple)
    _become(round_, held)


def _amount(round_: DeviceRound, hp: HermesHyperparameters) -> _Amount:
    layout = _layout(round_)
    ((unit, kept),) = hp.target.items()
    if unit == "latency_ms":
        if round_.latency is None:
            raise TrainingError(
                "algorithm.target.latency_ms is measured, and this device was sent no ONNX template to measure: name a "
                "share of the parameters or macs instead"
            )
        return _Amount(round_.latency, kept, CLOSE * kept, lambda now: _beginning(round_, now))
    if unit == "macs":
        cost = mac_cost(round_.initial, layout, round_.validation.inputs[:1])
    else:
        cost = parameter_cost(state_views(round_.initial), layout)
    whole = cost(layout.full())
    return _Amount(cost, kept * whole, kept * whole, lambda now: whole)


def _beginning(round_: DeviceRound, now: float) -> float:
    """The latency before the first step: measuring the dense network may be more than a small device can."""
    begun = round_.memory.setdefault(BEGINNING, {"latency_ms": np.array([now])})
    return float(begun["latency_ms"][0])


def _become(round_: DeviceRound, held: Masks | None) -> None:
    """The model in hand becomes the network of these channels, with the values that it has."""
    if held is None or all(mask.all() for mask in held.values()):
        return
    tensors = _laid(round_, Subnet(state_views(round_.model), round_.held), held=held)
    round_.model, round_.held = shrink(round_.initial, _layout(round_), held), held
    load_tensors(round_.model, tensors)


def _laid(round_: DeviceRound, *subnets: Subnet, held: Masks | None) -> Tensors:
    """The tensors of the last subnet, over those of the ones before, over the initial ones; cut down to `held`.

    One after the other: a device that trains a part of the network may have no room for copies of the whole.
    """
    layout, initial = _layout(round_), state_views(round_.initial)
    tensors: Tensors = {}
    for name in subnets[-1].tensors:
        dense = {name: initial[name].copy()}
        for subnet in subnets:
            if name in subnet.tensors:
                put(dense, Subnet({name: subnet.tensors[name]}, subnet.held), layout)
        tensors |= take(dense, layout, held)
    return tensors


def _layout(round_: DeviceRound) -> ChannelLayout:
    assert round_.layout is not None, "the worker resolves the layout for an algorithm that prunes"
    return round_.layout


# not partial: channels are chosen after training, and steps of pruning count rounds that were trained in full
HERMES = Algorithm(
    name="hermes",
    paper="doi:10.1145/3447993.3483278",
    hyperparameters=HermesHyperparameters,
    receive=receive,
    train=train,
    personalize=personalize,
    aggregate=aggregate,
    prunes=True,
    synchronous="which channels are given up is agreed among the updates of one round, which must have had the same",
)
