"""FedRep: devices learn one body together and each a head of its own, in turns (Collins et al., ICML 2021,
arXiv:2102.07078, algorithm 1).

In a round a device first trains its head with the body that it received frozen, then the body with that head frozen,
and uploads the body. After the last round every device trains its head once more, for the last body.

As in the authors' code: SGD with momentum .5 and a decay of 1e-4 on weights, none on biases, fresh in every round;
updates weigh the same; 10 epochs of the head, 1 (CIFAR-10 with 2 classes per device) or 5 of the body, and 10 of the
head in the end, on every device.

Deviations: of the head that the last phase trains, a copy goes into service, and the device remembers the head of its
last round. Without a head it is FedAvg, with nothing but a head it is local training.
"""

import copy
from collections.abc import Collection

from pydantic import Field
from torch import nn

from shared.algorithms.base import Algorithm, DeviceRound, FinetuneEpochs, Momentum, Weighting, local_sgd
from shared.algorithms.head import HeadHyperparameters, body, head


class FedRepHyperparameters(HeadHyperparameters):
    head_epochs: int = Field(10, ge=0, description="local epochs of the head per round, with the body frozen")
    epochs: int = Field(1, ge=0, description="local epochs of the body per round, then, with the head frozen")
    momentum: Momentum = 0.5
    weight_decay: float = Field(1e-4, ge=0, description="L2 penalty of the local SGD on everything but biases")
    finetune_epochs: FinetuneEpochs = 10
    weighting: Weighting = "uniform"


def train(round_: DeviceRound, hp: FedRepHyperparameters) -> None:
    """The head for this body, then the body for this head."""
    _train_part(round_.model, round_, hp, part=head(round_.model, hp), epochs=hp.head_epochs)
    _train_part(round_.model, round_, hp, part=body(round_.model, hp), epochs=hp.epochs)


def personalize(round_: DeviceRound, hp: FedRepHyperparameters) -> nn.Module:
    """A copy of the model in hand: the new body and the own head; after the last round, the head trained for it."""
    model = copy.deepcopy(round_.model)
    if round_.final:
        _train_part(model, round_, hp, part=head(model, hp), epochs=hp.finetune_epochs)
    return model


def _train_part(
    model: nn.Module, round_: DeviceRound, hp: FedRepHyperparameters, *, part: Collection[str], epochs: int
) -> None:
    """SGD on these names, everything else frozen; biases do not decay."""
    decaying = [value for name, value in model.named_parameters() if name.rpartition(".")[2] != "bias"]

    def decay() -> None:
        for value in decaying:
            if value.grad is not None:
                value.grad.add_(value.detach(), alpha=hp.weight_decay)

    undecayed = hp.model_copy(update={"weight_decay": 0.0})
    local_sgd(model, round_, undecayed, epochs=epochs, only=part, before_step=decay)


# not partial: the head comes first, so whoever ran out of time would upload a body that it never trained
FEDREP = Algorithm(
    name="fedrep",
    paper="arXiv:2102.07078",
    hyperparameters=FedRepHyperparameters,
    share=body,
    train=train,
    personalize=personalize,
)
