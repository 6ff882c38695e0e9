"""Removing channels from tensors and from a module. shared.selection chooses which.

A *dense* network has every channel; a *shrunk* one lacks those that are not held, physically; the *masked* one has the
dense shapes with zeros instead. Shrunk and masked compute the same, and train the same.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from shared.channels import ChannelLayout, selection
from shared.model_state import state_tensors
from shared.tensors import Array, Masks, Subnet, Tensors

STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
"""Last components of the state names that are not trained."""


# --- tensors --------------------------------------------------------------------------------------------------------


def take(tensors: Mapping[str, Array], layout: ChannelLayout, held: Masks | None) -> Tensors:
    """Dense tensors cut down to the held channels. Without `held`, and for a tensor that loses nothing, no copy."""
    return {name: array if held is None else _cut(name, array, layout, held) for name, array in tensors.items()}


def narrow(subnet: Subnet, layout: ChannelLayout, held: Masks | None) -> Subnet:
    """The subnet cut down further, to channels that it covers."""
    if held is None:
        return Subnet(subnet.tensors)
    if subnet.held is None:
        return Subnet(take(subnet.tensors, layout, held), held)
    tensors = dict(subnet.tensors)
    for name in subnet.tensors:
        axes = zip(layout.index(name, subnet.held), layout.index(name, held), strict=True)
        for axis, (have, wanted) in enumerate(axes):
            if wanted is not None:
                places = wanted if have is None else np.searchsorted(have, wanted)
                tensors[name] = tensors[name].take(places, axis=axis)
    return Subnet(tensors, held)


def covers(wide: Masks | None, narrow: Masks | None) -> bool:
    """Whether every channel of `narrow` is one of `wide`; None: all channels."""
    if wide is None:
        return True
    if narrow is None:
        return all(mask.all() for mask in wide.values())
    return all(not (mask & ~wide[group]).any() for group, mask in narrow.items())


def put(dense: Tensors, subnet: Subnet, layout: ChannelLayout) -> None:
    """Write the subnet's tensors to their places in the dense ones, in place; the rest keeps its values."""
    for name, array in subnet.tensors.items():
        target = dense[name]
        index = () if subnet.held is None else layout.index(name, subnet.held)
        target[selection(index, target.shape)] = array


def _cut(name: str, array: Array, layout: ChannelLayout, held: Masks) -> Array:
    for axis, positions in enumerate(layout.index(name, held)):
        if positions is not None:
            array = array.take(positions, axis=axis)
    return array


# --- modules --------------------------------------------------------------------------------------------------------


def shrink(model: nn.Module, layout: ChannelLayout, held: Masks) -> nn.Module:
    """A copy of the dense model without the channels that are not held: smaller parameters, buffers and layer widths.

    State names stay the same, so `load_tensors` takes `take(dense, ...)`. Optimizers must be made anew for it.
    """
    layout.check(held)
    smaller: dict[int, Any] = {}  # put in their places while the rest is copied: no dense copy is made of them
    for path, module in model.named_modules():
        for own, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) not in smaller:
                shrunk = _shrunk(f"{path}.{own}" if path else own, tensor, layout, held)
                if shrunk is not tensor:
                    smaller[id(tensor)] = shrunk
    model = copy.deepcopy(model, smaller)
    for module in model.modules():
        _adjust(module, depthwise=isinstance(module, _ConvNd) and module.groups == module.in_channels)
    return model


def masked(model: nn.Module, layout: ChannelLayout, held: Masks) -> nn.Module:
    """A copy of the dense model in which every coordinate of the other channels is 0 (a running variance: 1)."""
    layout.check(held)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            for axis, positions in enumerate(layout.index(name, held)):
                if positions is not None:
                    gone = np.setdiff1d(np.arange(tensor.shape[axis]), positions)
                    tensor.index_fill_(axis, torch.from_numpy(gone), 1.0 if _own(name) == "running_var" else 0.0)
    return model


def _shrunk(name: str, tensor: Tensor, layout: ChannelLayout, held: Masks) -> Tensor:
    index = layout.index(name, held)
    if all(positions is None for positions in index):
        return tensor
    values = tensor.detach()
    for axis, positions in enumerate(index):
        if positions is not None:
            values = values.index_select(axis, torch.from_numpy(positions).to(values.device))
    return nn.Parameter(values, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _adjust(module: nn.Module, *, depthwise: bool) -> None:
    """Make a layer's own numbers agree with its tensors again."""
    if isinstance(module, _ConvNd) and not module.transposed:
        if depthwise and module.groups > 1:
            module.groups = module.groups * module.weight.shape[0] // module.out_channels
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        sized = next((one for one in (module.weight, module.running_mean) if one is not None), None)
        module.num_features = module.num_features if sized is None else sized.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]


# --- how much is left -----------------------------------------------------------------------------------------------


def parameters(source: nn.Module | Mapping[str, Array], layout: ChannelLayout, held: Masks | None = None) -> int:
    """Trainable numbers of the network with the held channels; statistics of BatchNorm do not count."""
    shapes = parameter_shapes(state_tensors(source) if isinstance(source, nn.Module) else source)
    return sum(map(math.prod, (shapes if held is None else layout.shapes(shapes, held)).values()))


def parameter_shapes(tensors: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Shapes of what is trained, of a model's whole state."""
    return {name: array.shape for name, array in tensors.items() if _own(name) not in STATISTICS}


def channels(layout: ChannelLayout, held: Masks | None) -> tuple[int, int]:
    """Units held, and units that there are."""
    total = sum(layout.groups.values())
    return total if held is None else sum(int(mask.sum()) for mask in held.values()), total


def macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulate operations of convolutions and linear layers for one example of the batch."""
    return sum(weight.numel() * times for weight, times in weight_uses(model, example)) // example.shape[0]


def weight_uses(model: nn.Module, example: Tensor) -> list[tuple[Tensor, int]]:
    """Every call of a convolution or linear layer in eval mode: its weight, and how often each number of it is used."""
    was_training = model.training
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        model.eval()(example)
    model.train(was_training)
    return recorder.uses


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.uses: list[tuple[Tensor, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("conv1d", "conv2d", "conv3d", "linear"):
            weight: Tensor = args[1] if len(args) > 1 else kwargs["weight"]
            self.uses.append((weight, output.numel() // weight.shape[0]))
        return output


def _own(name: str) -> str:
    return name.rpartition(".")[2]
