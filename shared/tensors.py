"""Named arrays, and the way between them and torch: by name, never by position."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = dict[str, Array]
Masks: TypeAlias = dict[str, npt.NDArray[np.bool_]]
"""Channel group -> one bool per unit (channel) of the group: True where it is held."""


@dataclass(frozen=True)
class Subnet:
    """Some coordinates of a model: what travels in both directions, and what a device remembers.

    tensors  name -> array; its shape is the dense one, cut down to the held channels on every axis that a group owns
    held     the channels that are held, one bool per unit of every group; None: all of them (tensors are dense)
    """

    tensors: Tensors
    held: Masks | None = None


def state_tensors(model: "nn.Module", names: Iterable[str] | None = None) -> Tensors:
    """A copy of the model's state (parameters and buffers), all of it or the given names, as numpy arrays."""
    state = model.state_dict()
    return {name: state[name].detach().cpu().numpy().copy() for name in (state if names is None else names)}


def load_tensors(model: "nn.Module", tensors: Mapping[str, Array]) -> None:
    """Write the given tensors into the model, in place; names that are not given keep their values.

    Raises KeyError for a name that the model lacks and ValueError for another shape: neither is ever broadcast.
    """
    import torch

    state = model.state_dict()
    with torch.no_grad():
        for name, array in tensors.items():
            target = state[name]
            if tuple(target.shape) != array.shape:
                raise ValueError(f"{name}: shape {array.shape} does not fit {tuple(target.shape)}")
            target.copy_(torch.tensor(array))
