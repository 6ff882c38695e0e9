"""FedPer: the body is averaged, the head never leaves the device (Arivazhagan et al., 2019, arXiv:1912.00818).

Both are trained together, in the same SGD. Base layers and personalization layers of the paper are called body and
head here. Without a head it is FedAvg, with nothing but a head it is local training.
"""

from pydantic import Field
from torch import nn

from shared.algorithms.base import Algorithm, Hyperparameters
from shared.partition import head_names, names_under


class FedPerHyperparameters(Hyperparameters):
    head: tuple[str, ...] | None = Field(
        None, description="modules that stay on the device; without it, the last layer", examples=[["fc2"]]
    )


def body(model: nn.Module, hp: FedPerHyperparameters) -> frozenset[str]:
    """Everything but the head."""
    head = head_names(model) if hp.head is None else names_under(model, hp.head)
    return frozenset(model.state_dict()) - head


FEDPER = Algorithm(name="fedper", paper="arXiv:1912.00818", hyperparameters=FedPerHyperparameters, share=body)
