"""The mean of many partial models: what the coordinator makes of the updates of one round. shared.robust has the rules
for fleets in which some lie."""

import math
import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from shared.channels import AxisUnits, ChannelLayout, Index, selection
from shared.tensors import Array, Masks, Subnet, Tensors

Axes: TypeAlias = tuple[AxisUnits | None, ...]

BLOCK = 1 << 16
"""Elements that are scattered at once: a buffer of 256 KiB, which stays in a core's cache."""


class Overlap(StrEnum):
    """Which coordinates of partial updates are averaged: those held by ANY update, or by ALL of them. AGREED averages
    as ANY does, and what no update holds is given up."""

    ANY = "any"
    ALL = "all"
    AGREED = "agreed"


@dataclass(frozen=True)
class Update:
    """What a device sends back.

    subnet  float32 tensors (integers for counters), cut down to the held channels
    weight  what the update weighs in the mean, >= 0
    """

    subnet: Subnet
    weight: float


@dataclass(frozen=True)
class Aggregate:
    """The new global model.

    tensors  dense, names, shapes and dtypes as before the round
    valid    units whose coordinates were held by every update; elsewhere devices keep their own. None: all are valid
    alive    units that some update held; devices give the others up. None: all are alive
    exposed  share of the averaged coordinates in which a rule that should bear hostile updates could not, as too few
             updates hold them (shared.robust); 0 for a rule that promises nothing
    """

    tensors: Tensors
    valid: Masks | None = None
    alive: Masks | None = None
    exposed: float = 0.0


class Accumulator(Protocol):
    """Folds the updates of one round, one after the other. Its memory does not depend on how many there are."""

    def add(self, update: Update) -> None:
        """Fold one admitted update: names and shapes are those of the run. Nothing of it is kept, or written to."""

    def result(self, previous: Tensors) -> Aggregate:
        """The new global model after the last `add`; ends this accumulator. `previous` is not changed, but tensors
        to which nobody contributed are shared with it."""


class Rule(Protocol):
    """What becomes of the values of one coordinate: makes an accumulator for one round (shared.robust has others)."""

    def __call__(self, layout: ChannelLayout | None, *, overlap: Overlap) -> Accumulator:
        """layout: None where all updates are dense."""


class Holders:
    """Which units the updates of a round hold."""

    def __init__(self, layout: ChannelLayout | None, overlap: Overlap) -> None:
        self._layout = layout
        self._overlap = overlap
        self._whole = False
        self.by_all: Masks | None = None
        """Units that every update holds; None: all."""
        self._by_some: Masks | None = None

    def add(self, held: Masks | None) -> Masks | None:
        """One more update; its masks, None where it holds everything."""
        if held is None or all(mask.all() for mask in held.values()):
            self._whole = True
            return None
        by_all, by_some = self.by_all or held, self._by_some or held
        self.by_all = {group: mask & by_all[group] for group, mask in held.items()}
        self._by_some = {group: mask | by_some[group] for group, mask in held.items()}
        return held

    def kept(self, name: str, held: Masks | None) -> tuple[Index | None, ...]:
        """Where a tensor that is cut down to `held` lies in the dense one (ChannelLayout.index)."""
        if held is None:
            return ()
        if self._layout is None:
            raise ValueError("a partial update cannot be placed without the model's channel layout")
        return self._layout.index(name, held)

    def aggregate(self, tensors: Tensors, exposed: float = 0.0) -> Aggregate:
        """The new global model with what `overlap` says of its units."""
        return Aggregate(
            tensors,
            valid=self.by_all if self._overlap is Overlap.ALL else None,
            alive=self._by_some if self._overlap is Overlap.AGREED and not self._whole else None,
            exposed=exposed,
        )


@dataclass
class _Sum:
    """One tensor being averaged.

    values   dense: sum of weight * value; for integers the maximum
    whole    total weight of the updates that hold all of the tensor
    partial  total weight of the others, by unit: dense on axes that have channels, 1 on all others; None: no others
    """

    values: Array
    whole: float = 0.0
    partial: npt.NDArray[np.float32] | None = None


class WeightedMean:
    """Per coordinate, sum(weight * value) / sum(weight) over the updates that hold it; without masks, FedAvg.

    Where nobody holds a coordinate, or with Overlap.ALL not everybody, its previous value stays. Integer tensors
    (BatchNorm's counters) become their maximum. Sums are float32 (float64 for float64 tensors), so the order of the
    updates shows, but in the last bits only.
    """

    def __init__(self, layout: ChannelLayout | None, *, overlap: Overlap) -> None:
        self._layout = layout
        self._overlap = overlap
        self._holders = Holders(layout, overlap)
        self._sums: dict[str, _Sum] = {}

    def add(self, update: Update) -> None:
        held = self._holders.add(update.subnet.held)
        if update.weight == 0:
            return
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
            for name, array in update.subnet.tensors.items():
                kept = self._holders.kept(name, held)
                if self._layout is None or all(positions is None for positions in kept):
                    self._add_whole(name, array, update.weight)
                else:
                    self._add_partial(name, array, kept, self._layout.axes[name], update.weight)

    def result(self, previous: Tensors) -> Aggregate:
        tensors = dict(previous)
        for name, before in previous.items():
            if (total := self._sums.pop(name, None)) is not None:
                tensors[name] = self._mean(name, total, before)
        return self._holders.aggregate(tensors)

    def _add_whole(self, name: str, array: Array, weight: float) -> None:
        if name not in self._sums:
            self._sums[name] = _Sum(_lowest(array.shape, array.dtype))
        total = self._sums[name]
        if array.dtype.kind == "f":
            torch.from_numpy(total.values).add_(torch.from_numpy(array), alpha=weight)
        else:
            np.maximum(total.values, array, out=total.values)
        total.whole += weight

    def _add_partial(self, name: str, array: Array, kept: tuple[Index | None, ...], axes: Axes, weight: float) -> None:
        if name not in self._sums:
            self._sums[name] = _Sum(_lowest(dense_shape(array.shape, axes), array.dtype))
        total = self._sums[name]
        if array.dtype.kind == "f":
            _scatter(total.values, torch.from_numpy(array), kept, weight)
        else:
            place = selection(kept, total.values.shape)
            total.values[place] = np.maximum(total.values[place], array)
        if self._overlap is Overlap.ALL:
            total.whole += weight  # what this update lacks will not be averaged at all
            return
        if total.partial is None:
            total.partial = np.zeros(_unit_shape(total.values.shape, axes), np.float32)
        _scatter(total.partial, torch.ones(()).expand(_unit_shape(array.shape, axes)), kept, weight)

    def _mean(self, name: str, total: _Sum, before: Array) -> Array:
        """The sum becomes the mean, in place."""
        weights: Array = np.asarray(total.whole, np.float32)
        if total.partial is not None:
            weights = np.add(total.partial, weights, out=total.partial)
        elif self._layout and self._overlap is Overlap.ALL and (kept := self._holders.kept(name, self._holders.by_all)):
            weights = np.zeros(_unit_shape(before.shape, self._layout.axes[name]), np.float32)
            weights[selection(kept, weights.shape)] = total.whole
        if total.values.dtype.kind == "f":
            np.divide(total.values, weights, out=total.values, where=weights > 0)
        np.copyto(total.values, before, where=weights == 0)
        return total.values.astype(before.dtype, copy=False)


def _lowest(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Where a sum starts (float32 or wider), or a maximum."""
    if dtype.kind == "f":
        return np.zeros(shape, max(dtype, np.dtype(np.float32)))
    return np.full(shape, False if dtype.kind == "b" else np.iinfo(dtype).min, dtype)


def dense_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """The shape of the tensor of which one of `shape` is cut; `axes`: those of its ChannelLayout."""
    return tuple(size if units is None else len(units) for size, units in zip(shape, axes, strict=True))


def _unit_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """`shape`, with 1 for axes without channels."""
    return tuple(1 if units is None else size for size, units in zip(shape, axes, strict=True))


def _scatter(target: Array, source: torch.Tensor, kept: tuple[Index | None, ...], weight: float) -> None:
    """target[kept] += weight * source, where no temporary is larger than BLOCK elements or one row of the target.

    Rows (along the first axis) are spread to full width in a buffer, then added where they belong. (A float16 source
    of whole rows is converted at once.)
    """
    rows, row = target.shape[0], target.shape[1:]
    into = torch.from_numpy(target).view(rows, -1)
    wanted = torch.arange(rows) if kept[0] is None else torch.from_numpy(kept[0])
    source = source.reshape(len(wanted), -1)
    if source.shape[1] == into.shape[1]:
        into.index_add_(0, wanted, source.to(into.dtype), alpha=weight)
        return
    columns = torch.from_numpy(np.arange(math.prod(row)).reshape(row)[selection(kept[1:], row)].ravel())
    block = min(len(wanted), max(1, BLOCK // into.shape[1]))
    buffer = torch.zeros(block, into.shape[1], dtype=into.dtype)
    for part, at in zip(torch.split(source, block), torch.split(wanted, block), strict=True):
        spread = buffer[: len(part)].index_copy_(1, columns, part.to(into.dtype))
        into.index_add_(0, at, spread, alpha=weight)
