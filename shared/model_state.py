"""Between a model and named arrays: by name, never by position."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from shared.errors import MalformedPayload
from shared.tensors import Array, Subnet, Tensors


def state_tensors(model: nn.Module, names: Iterable[str] | None = None) -> Tensors:
    """A copy of the model's state (parameters and buffers), all of it or the given names, as numpy arrays."""
    state = model.state_dict()
    return {name: state[name].detach().cpu().numpy().copy() for name in (state if names is None else names)}


def state_views(model: nn.Module) -> Tensors:
    """The model's state, not copied: to be read, while the model stays as it is."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}


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


def load_state(model: nn.Module, whole: Subnet) -> None:
    """Make these tensors the model's whole state, in place.

    MalformedPayload unless they are all of the state, dense, each of its dtype and shape: then nothing is changed.
    """
    state = state_views(model)
    if whole.held is not None:
        raise MalformedPayload("it holds only some of the model's channels")
    if missing := sorted(state.keys() - whole.tensors.keys()):
        raise MalformedPayload(f"it lacks {', '.join(missing[:5])} ({len(missing)} of {len(state)} tensors)")
    if unknown := sorted(whole.tensors.keys() - state.keys()):
        raise MalformedPayload(f"the model has no {', '.join(unknown[:5])} ({len(unknown)} tensors)")
    for name, wanted in state.items():
        found = whole.tensors[name]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise MalformedPayload(
                f"{name} is {found.dtype}{list(found.shape)}, the model's {wanted.dtype}{list(wanted.shape)}"
            )
    load_tensors(model, whole.tensors)
