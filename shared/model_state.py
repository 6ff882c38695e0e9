"""Between a model and named arrays: by name, never by position."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from shared.tensors import Array, Tensors


def state_tensors(model: nn.Module, names: Iterable[str] | None = None) -> Tensors:
    """A copy of the model's state (parameters and buffers), all of it or the given names, as numpy arrays."""
    state = model.state_dict()
    return {name: state[name].detach().cpu().numpy().copy() for name in (state if names is None else names)}


def load_tensors(model: nn.Module, tensors: Mapping[str, Array]) -> None:
    """Write the given tensors into the model, in place; names that are not given keep their values.

    Raises KeyError for a name that the model lacks and ValueError for another shape: neither is ever broadcast.
    """
    state = model.state_dict()
    with torch.no_grad():
        for name, array in tensors.items():
            target = state[name]
            if tuple(target.shape) != array.shape:
                raise ValueError(f"{name}: shape {array.shape} does not fit {tuple(target.shape)}")
            target.copy_(torch.tensor(array))
