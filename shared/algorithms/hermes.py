"""Hermes: every device finds its own channel-pruned subnetwork, and only what overlaps is averaged.

After the abstract of Li et al., "Hermes: an efficient federated learning framework for heterogeneous mobile clients",
MobiCom 2021. What it leaves open, we read as follows:

- Structured means coupled channel groups: a channel goes with its bias, its BatchNorm coordinates and the inputs of
  every layer that consumes it. The classifier's rows and the model's input always stay (shared.channels).
- Channels are chosen by magnitude (shared.pruning), the amount is stated in parameters of the network that remains.
- A device prunes a step further in a round when what it received reaches `accuracy_threshold` on its own validation
  split, until `pruning_target` is reached. Masks only shrink; survivors keep their values.
- Overlapped is, as `overlap` says, what `all` participants of the round hold (the literal reading), or what several do
  (`any`: the mean over those who hold it). Elsewhere a device keeps its own values.

Deviations: the device trains the physically shrunk network, which is the same as training the masked one, only faster;
channel counts are rounded up to what the device's runtime likes; updates weigh by their examples unless `weighting`
says otherwise; and `finetune_epochs` adds an epoch or more on the device's own data after the last round.
"""

from pydantic import Field

from shared.aggregation import Accumulator, Overlap, WeightedMean
from shared.algorithms.base import Algorithm, DeviceRound, Hyperparameters
from shared.algorithms.base import train as train_everything
from shared.channels import ChannelLayout
from shared.model_state import load_tensors, state_tensors
from shared.pruning import parameters, put, shrink, take
from shared.selection import choose, parameter_cost
from shared.tensors import Masks, Subnet, Tensors
from shared.training import evaluate


class HermesHyperparameters(Hyperparameters):
    pruning_amount: float = Field(0.1, gt=0, le=1, description="share of all parameters removed in one step")
    pruning_target: float = Field(0.5, ge=0, lt=1, description="share of all parameters removed in the end")
    accuracy_threshold: float = Field(0.5, ge=0, le=1, description="validation accuracy that allows a step")
    overlap: Overlap = Field(
        Overlap.ANY, description="what is averaged: coordinates held by `any` of the round's devices, or by `all`"
    )
    multiple: int | None = Field(
        None,
        ge=1,
        description="kept channels are rounded up to this; without it, to what the device's profile names",
        examples=[8],
    )


def receive(round_: DeviceRound, hp: HermesHyperparameters) -> None:
    """Own values, and received ones in place of them where there are any; of both, the channels that are held."""
    layout = _layout(round_)
    dense = state_tensors(round_.model)
    put(dense, Subnet(round_.memory.get("own", {}), round_.held), layout)
    put(dense, round_.received, layout)
    _cut(round_, dense, round_.held)


def train(round_: DeviceRound, hp: HermesHyperparameters) -> None:
    """Prune a step further if the model is good enough, then train what is left."""
    _prune(round_, hp)
    train_everything(round_, hp)
    round_.memory["own"] = state_tensors(round_.model, round_.received.tensors)


def aggregate(layout: ChannelLayout | None, hp: HermesHyperparameters) -> Accumulator:
    """The mean over the devices that hold a coordinate, or over all of them where all hold it."""
    return WeightedMean(layout, overlap=hp.overlap)


def _prune(round_: DeviceRound, hp: HermesHyperparameters) -> None:
    layout = _layout(round_)
    dense = state_tensors(round_.initial)
    pruned = 1 - parameters(dense, layout, round_.held) / parameters(dense, layout)
    if pruned >= hp.pruning_target or evaluate(round_.model, round_.validation).accuracy < hp.accuracy_threshold:
        return
    step = min(hp.pruning_amount, hp.pruning_target - pruned)
    put(dense, Subnet(state_tensors(round_.model), round_.held), layout)
    goal, multiple = (1 - pruned - step) * parameters(dense, layout), hp.multiple or round_.multiple
    held = choose(dense, layout, round_.held, cost=parameter_cost(dense, layout), goal=goal, multiple=multiple)
    if not all(mask.all() for mask in held.values()):
        _cut(round_, dense, held)


def _cut(round_: DeviceRound, dense: Tensors, held: Masks | None) -> None:
    """The model in hand becomes the network of the held channels, with the values of the dense tensors."""
    layout = _layout(round_)
    if held is not None:
        round_.model, round_.held = shrink(round_.initial, layout, held), held
    load_tensors(round_.model, take(dense, layout, held))


def _layout(round_: DeviceRound) -> ChannelLayout:
    assert round_.layout is not None, "the worker resolves the layout for an algorithm that prunes"
    return round_.layout


HERMES = Algorithm(
    name="hermes",
    paper="doi:10.1145/3447993.3483278",
    hyperparameters=HermesHyperparameters,
    receive=receive,
    train=train,
    aggregate=aggregate,
    prunes=True,
)
