"""Removing channels: from tensors, from a module, and the choice of which.

A *dense* network has every channel; a *shrunk* one lacks those that are not held, physically; the *masked* one has the
dense shapes with zeros instead. Shrunk and masked compute the same, and train the same.
"""

import bisect
import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from shared.channels import FIXED, ChannelLayout, selection
from shared.model_state import state_tensors
from shared.tensors import Array, Masks, Subnet, Tensors

STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
"""Last components of the state names that are not trained."""


# --- tensors --------------------------------------------------------------------------------------------------------


def take(tensors: Mapping[str, Array], layout: ChannelLayout, held: Masks | None) -> Tensors:
    """Dense tensors cut down to the held channels. Without `held`, and for a tensor that loses nothing, no copy."""
    return {name: array if held is None else _cut(name, array, layout, held) for name, array in tensors.items()}


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
    model = copy.deepcopy(model)
    made: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        depthwise = isinstance(module, _ConvNd) and module.groups == module.in_channels
        for own, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) not in made:
                made[id(tensor)] = _shrunk(f"{path}.{own}" if path else own, tensor, layout, held)
            if made[id(tensor)] is not tensor:
                setattr(module, own, made[id(tensor)])
        _adjust(module, depthwise=depthwise)
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


# --- the choice -----------------------------------------------------------------------------------------------------


def scores(
    source: nn.Module | Mapping[str, Array], layout: ChannelLayout, held: Masks | None = None
) -> dict[str, npt.NDArray[np.float64]]:
    """How much each unit weighs: the L1 norm over all held parameters that would go with it. Units not held get 0."""
    held = layout.full() if held is None else held
    total = np.zeros(sum(layout.groups.values()) + 1)  # FIXED adds to the last one
    for name, array in _parameters(source).items():
        if name in layout.axes:
            sizes = np.abs(_cut(name, array, layout, held)).astype(np.float64)
            for axis, (units, kept) in enumerate(zip(layout.axes[name], layout.index(name, held), strict=True)):
                if units is not None:
                    others = tuple(other for other in range(sizes.ndim) if other != axis)
                    np.add.at(total, units if kept is None else units[kept], sizes.sum(axis=others))
    ends = np.cumsum(list(layout.groups.values()))
    return dict(zip(layout.groups, np.split(total[:FIXED], ends[:-1]), strict=True)) if layout.groups else {}


def choose(
    tensors: Mapping[str, Array], layout: ChannelLayout, held: Masks | None, *, keep: float, multiple: int = 8
) -> Masks:
    """Drop the channels of lowest L1 until at most `keep` (a fraction) of the dense model's parameters are left.

    Channels go in blocks that leave a multiple of `multiple` in their group, first from the group that has lost the
    smallest share, so that all shrink evenly. The last block is the one that reaches the target most closely. No group
    goes below min(multiple, units); when all are there, the target may not be reached. The masks only shrink: what is
    not held stays out. Deterministic.

    tensors  the dense model's state
    held     what is held now; None: everything
    """
    held = layout.full() if held is None else held
    layout.check(held)
    worth = scores(tensors, layout, held)
    order = {group: np.argsort(np.where(mask, -worth[group], np.inf), kind="stable") for group, mask in held.items()}
    steps = sorted(
        (1 - left / layout.groups[group], place, left)
        for place, group in enumerate(layout.groups)
        for left in range((int(held[group].sum()) - 1) // multiple * multiple, 0, -multiple)
    )
    groups = list(layout.groups)
    blocks = [(groups[place], left) for _, place, left in steps]

    def without(gone: Sequence[tuple[str, int]]) -> Masks:
        masks = {group: mask.copy() for group, mask in held.items()}
        for group, left in gone:
            masks[group][order[group][left:]] = False
        return masks

    def size(gone: Sequence[tuple[str, int]]) -> int:
        return parameters(tensors, layout, without(gone))

    goal = keep * parameters(tensors, layout)
    needed = bisect.bisect_left(range(len(blocks)), True, key=lambda count: size(blocks[:count]) <= goal)
    if needed == 0:
        return without([])
    before, next_blocks = blocks[: needed - 1], dict(reversed(blocks[needed - 1 :]))
    endings = [[*before, block] for block in next_blocks.items()]
    return without(max((gone for gone in endings if size(gone) <= goal), key=size, default=blocks))


# --- how much is left -----------------------------------------------------------------------------------------------


def parameters(source: nn.Module | Mapping[str, Array], layout: ChannelLayout, held: Masks | None = None) -> int:
    """Trainable numbers of the network with the held channels; statistics of BatchNorm do not count."""
    shapes = {name: array.shape for name, array in _parameters(source).items()}
    if held is not None:
        shapes = layout.shapes(shapes, held)
    return sum(map(math.prod, shapes.values()))


def channels(layout: ChannelLayout, held: Masks | None) -> tuple[int, int]:
    """Units held, and units that there are."""
    total = sum(layout.groups.values())
    return total if held is None else sum(int(mask.sum()) for mask in held.values()), total


def macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulate operations of convolutions and linear layers for one example of the batch."""
    was_training = model.training
    counter = _Counter()
    with torch.no_grad(), counter:
        model.eval()(example)
    model.train(was_training)
    return counter.total // example.shape[0]


class _Counter(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("conv1d", "conv2d", "conv3d", "linear"):
            weight: Tensor = args[1] if len(args) > 1 else kwargs["weight"]
            self.total += output.numel() * weight[0].numel()
        return output


def _parameters(source: nn.Module | Mapping[str, Array]) -> Mapping[str, Array]:
    tensors = state_tensors(source) if isinstance(source, nn.Module) else source
    return {name: array for name, array in tensors.items() if _own(name) not in STATISTICS}


def _own(name: str) -> str:
    return name.rpartition(".")[2]
