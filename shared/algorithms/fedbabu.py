"""FedBABU: only the body is trained and averaged, under a head that stays random; devices fine-tune in the end (Oh,
Kim and Yun, ICLR 2022, arXiv:2106.06042, algorithm 1).

The head is drawn from the run's seed, so it is the same on every device without ever being sent. During the rounds
nobody trains it. After the last round every device fine-tunes a copy of the model, head included, on its own data.
Evaluated is both: `accuracy_global` is the paper's initial accuracy (global body, random head), `accuracy` after the
last round the personalized one.

As in the authors' code: updates weigh the same; the learning rate drops to a tenth at half and at three quarters of
the rounds (`lr_milestones = [50, 75]` of 100); momentum .9 and lr .1 are set by a run. Deviations: fine-tuning starts
from `lr`, not from where the schedule left it, unless `finetune_lr` says otherwise. Without a head it is FedAvg.
"""

import copy
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from shared.algorithms.base import Algorithm, DeviceRound, FinetuneEpochs, Weighting, local_sgd
from shared.algorithms.head import HeadHyperparameters, body, head


class FedBABUHyperparameters(HeadHyperparameters):
    lr_milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="rounds after which the learning rate is a tenth of what it was"
    )
    finetune_part: Literal["head", "body", "full"] = Field(
        "full", description="what is trained after the last round, for the device's own model"
    )
    finetune_epochs: FinetuneEpochs = 5
    finetune_lr: float | None = Field(
        None, gt=0, description="learning rate after the last round; without it, lr", examples=[0.01]
    )
    weighting: Weighting = "uniform"


def train(round_: DeviceRound, hp: FedBABUHyperparameters) -> None:
    """SGD on the body, at the round's learning rate; the head stays as it was drawn."""
    passed = sum(milestone < round_.number for milestone in hp.lr_milestones)
    scheduled = hp.model_copy(update={"lr": hp.lr * 0.1**passed})
    local_sgd(round_.model, round_, scheduled, epochs=hp.epochs, only=body(round_.model, hp))


def personalize(round_: DeviceRound, hp: FedBABUHyperparameters) -> nn.Module:
    """A copy of the model in hand; after the last round, its `finetune_part` fine-tuned."""
    model = copy.deepcopy(round_.model)
    if round_.final:
        parts = {"head": head(model, hp), "body": body(model, hp), "full": None}
        tuned = hp.model_copy(update={"lr": hp.finetune_lr or hp.lr})
        local_sgd(model, round_, tuned, epochs=hp.finetune_epochs, only=parts[hp.finetune_part])
    return model


FEDBABU = Algorithm(
    name="fedbabu",
    paper="arXiv:2106.06042",
    hyperparameters=FedBABUHyperparameters,
    share=body,
    train=train,
    personalize=personalize,
    partial=True,
)
