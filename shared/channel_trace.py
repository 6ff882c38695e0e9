"""Finding the channel groups of any model: one labelled forward pass, and a self-test of what it found.

The model runs on a tiny example while every activation carries labels (shared.channel_labels) that say which removable
channel each element belongs to; the rules (shared.channel_rules) move them through each operation. It runs once in
eval and once in train mode, because some layers exist in one of them only.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shared.channel_calls import Call, Size, tensors_in
from shared.channel_labels import FIXED, Labels, fixed
from shared.channel_rules import RULES, freeze
from shared.channels import FIXED as STAYS
from shared.channels import AxisUnits, ChannelLayout
from shared.errors import ModelError
from shared.pruning import masked, shrink
from shared.tensors import Masks

TOLERANCE = 1e-6
"""Largest difference between the shrunk and the masked network, relative to the largest output; both in float64."""


def channel_layout(model: nn.Module, example: Tensor) -> ChannelLayout:
    """The channels of the model that can be removed. The model is left as it was; `example` is a batch of 2 or more.

    Never removable: the model's input, its outputs (the classifier's rows), and whatever a rule found unsafe.
    Raises ModelError for an operation on channels that has no rule, by its name.
    """
    model = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})  # only buffers change
    tracer = _Tracer(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for training in (False, True):
            model.train(training)
            tracer.follow(model, example)
    return tracer.layout()


def verify_layout(model: nn.Module, layout: ChannelLayout, example: Tensor, *, seed: int = 0) -> None:
    """Raise ModelError unless removing channels is the same as zeroing them, for a random half, in eval and train mode.

    Dropout is switched off: it draws a different noise for a different number of channels.
    """
    held = random_masks(layout, seed=seed)
    example = torch.randn(example.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    small = shrink(model, layout, held).double()
    zeroed = masked(model, layout, held).double()
    for training in (False, True):
        try:
            ours, theirs = _outputs(small.train(training), example), _outputs(zeroed.train(training), example)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ModelError(f"{type(model).__name__} does not run with half of its channels: {error}") from error
        for one, other in zip(ours, theirs, strict=True):
            if one.shape != other.shape or not (one - other).abs().max() <= TOLERANCE * other.abs().max():
                raise ModelError(
                    f"{type(model).__name__} with half of its channels removed differs from the same channels set to "
                    f"zero ({'train' if training else 'eval'} mode): its forward pass depends on the number of channels"
                )


def random_masks(layout: ChannelLayout, *, seed: int, keep: float = 0.5) -> Masks:
    """Masks that hold that share of every group, rounded, at least one channel; which ones is drawn from `seed`."""
    random = np.random.default_rng(seed)
    return {group: random.permutation(units) < max(1, round(keep * units)) for group, units in layout.groups.items()}


class _WithoutDropout(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "dropout" in getattr(func, "__name__", ""):
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


def _outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _WithoutDropout():
        torch.default_generator.manual_seed(0)  # stochastic depth draws the same in both networks
        return list(tensors_in(model(example)))


class _Tracer(TorchFunctionMode):
    """The labelled pass (a `channel_rules.Trace`)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.labels = Labels()
        self._names: dict[int, list[str]] = {}
        for find in (model.named_parameters, model.named_buffers):
            for name, tensor in find(remove_duplicate=False):
                self._names.setdefault(id(tensor), []).append(name)
        self._order = {names[0]: place for place, names in enumerate(self._names.values())}
        self._state = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        self._activations: dict[int, tuple[Tensor, Tensor]] = {}  # the tensor is kept, so that its id stays its own
        self._axes: dict[int, list[Tensor | None]] = {}
        self._producers: set[int] = set()
        self._bound: set[int] = set()

    def follow(self, model: nn.Module, example: Tensor) -> None:
        """One forward pass in the model's present mode."""
        self._activations = {}
        example = example.clone()  # the model may work in place
        self._label(example, fixed(example.shape))
        with self:
            output = model(example)
        for tensor in tensors_in(output):
            self.labels.freeze(self.of(tensor))

    # --- what rules ask for ---

    def of(self, tensor: Tensor) -> Tensor:
        known = self._activations.get(id(tensor))
        return fixed(tensor.shape) if known is None else known[1]

    def is_state(self, tensor: Tensor) -> bool:
        return id(tensor) in self._state

    def bind(self, parameter: Tensor | None, axis: int, labels: Tensor) -> None:
        if parameter is None:
            return
        if not self.is_state(parameter):
            self.labels.freeze(labels)
            return
        self._bound.add(id(parameter))
        axes = self._axes.setdefault(id(parameter), [None] * parameter.dim())
        known = axes[axis]
        if known is None:
            axes[axis] = labels
        else:  # the layer is used more than once
            self.labels.join(known, labels)

    def produce(self, weight: Tensor, labels: Tensor) -> None:
        self.bind(weight, 0, labels)
        self._producers.add(id(weight))

    # --- the pass itself ---

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = Call(_name(func), func, tuple(args), kwargs, func(*args, **kwargs))
        inputs, outputs = call.inputs(), list(tensors_in(call.output))
        labelled = [tensor for tensor in inputs if id(tensor) in self._activations]
        if not outputs and call.output is not None:
            return self._sizes(call) if labelled and call.name in ("size", "shape") else call.output
        self._bound = set()
        if labelled:
            found = self._rule(call, labelled)
            for tensor, labels in zip(outputs, [found] if isinstance(found, Tensor) else found, strict=True):
                self._label(tensor, labels)
        for tensor in inputs:
            if self.is_state(tensor) and id(tensor) not in self._bound:
                for axis, size in enumerate(tensor.shape):  # used in a way that no rule follows: it stays whole
                    self.bind(tensor, axis, fixed(torch.Size([size])))
        return call.output

    def _rule(self, call: Call, labelled: list[Tensor]) -> Any:
        rule: Callable[[Any, Call], Any] | None = RULES.get(call.name)
        if rule is None:
            if any(self.labels.roots(self.of(tensor)).any() for tensor in labelled):
                raise ModelError(
                    f"operation {call.name!r} is not known to the channel resolver, so it cannot be pruned around; "
                    "use one of those in docs/pruning.md, or an algorithm that does not prune"
                )
            rule = freeze  # nothing removable has reached it
        return rule(self, call)

    def _sizes(self, call: Call) -> Any:
        """What `x.shape`, `x.size()` or `x.size(axis)` gave, each size knowing where it comes from."""
        labels = self.of(call.data)
        if isinstance(call.output, int):
            return Size.of(call.output, labels, call.argument(1, "dim"))
        return torch.Size([Size.of(size, labels, axis) for axis, size in enumerate(call.output)])

    def _label(self, tensor: Tensor, labels: Tensor) -> None:
        self._activations[id(tensor)] = (tensor, labels)

    # --- the result ---

    def layout(self) -> ChannelLayout:
        groups, unit_of = self._groups()
        axes: dict[str, tuple[AxisUnits | None, ...]] = {}
        for key, bound in self._axes.items():
            units = [None if labels is None else unit_of[self.labels.roots(labels).numpy()] for labels in bound]
            free = tuple(None if one is None or (one == STAYS).all() else one for one in units)
            if any(one is not None for one in free):
                axes.update(dict.fromkeys(self._names[key], free))
        return ChannelLayout(groups, axes)

    def _groups(self) -> tuple[dict[str, int], AxisUnits]:
        """Groups with their sizes, and the unit of every label: units that exactly the same layers produce."""
        makers: dict[int, list[str]] = {}
        for key in sorted(self._producers, key=lambda key: self._order[self._names[key][0]]):
            rows, name = self._axes[key][0], self._names[key][0]
            assert rows is not None
            for root in dict.fromkeys(self.labels.roots(rows).tolist()):
                makers.setdefault(root, []).append(name.rpartition(".")[0] or name)
        makers.pop(FIXED, None)
        members: dict[tuple[str, ...], list[int]] = {}
        for root, layers in makers.items():
            members.setdefault(tuple(layers), []).append(root)
        groups: dict[str, int] = {}
        unit_of = np.full(len(self.labels), STAYS, dtype=np.int64)
        for producers, roots in members.items():
            first = producers[0]
            same = sum(name.partition("#")[0] == first for name in groups)
            unit_of[roots] = np.arange(len(roots)) + sum(groups.values())
            groups[f"{first}#{same + 1}" if same else first] = len(roots)
        return groups, unit_of


def _name(func: Any) -> str:
    """The operation's name without underscores, so that `relu_`, `__add__` and `_max_pool2d` are found as well."""
    name = getattr(func, "__name__", type(func).__name__)
    owner = getattr(func, "__self__", None)
    return str(owner.__name__ if name == "__get__" and owner is not None else name).strip("_")
