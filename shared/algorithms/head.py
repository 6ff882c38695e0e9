"""The split into body and head, for the algorithms whose shared part is the body."""

from pydantic import Field
from torch import nn

from shared.algorithms.base import Hyperparameters
from shared.partition import head_names, names_under


class HeadHyperparameters(Hyperparameters):
    head: tuple[str, ...] | None = Field(
        None, description="modules that stay on the device; without it, the last layer", examples=[["fc2"]]
    )


def head(model: nn.Module, hp: HeadHyperparameters) -> frozenset[str]:
    """State names of the head: of the modules that are named, or of the last layer. ConfigError or ModelError where
    there is none."""
    return head_names(model) if hp.head is None else names_under(model, hp.head)


def body(model: nn.Module, hp: HeadHyperparameters) -> frozenset[str]:
    """Everything but the head."""
    return frozenset(model.state_dict()) - head(model, hp)
