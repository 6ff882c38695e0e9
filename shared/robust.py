"""Rules that bear updates of devices that lie: coordinate-wise trimmed mean and median, and a mean of clipped updates.

All of them have to see the updates of a coordinate together, or twice. So the updates of a round are spread out into
one file, a dense row for each, and read back in blocks: memory is O(the largest tensor), never O(cohort); the file has
(updates x model) bytes, one descriptor, and no name, so that nothing of it stays whatever is killed.

A coordinate's rule is taken over the updates that hold it, and `Overlap` says of it what it says of the mean. Integers
(BatchNorm's counters) become the lower median of those that hold them: the maximum, which the mean takes, is whatever
one device says it is.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from shared.aggregation import Aggregate, Holders, Overlap, Rule, Update, WeightedMean, dense_shape
from shared.channels import ChannelLayout, selection
from shared.config_rounds import AggregationSettings
from shared.tensors import Array, Tensors

BLOCK_BYTES = 4 << 20
"""Of all rows together, that are worked on at once."""
FEW = 3
"""Of two updates nobody can say which one lies."""

Counts: TypeAlias = npt.NDArray[np.int64]
Trim: TypeAlias = Callable[[Any], Any]
"""How many of so many values (ints, or an array of them) are left out at either end; less than half."""


def rule_of(settings: AggregationSettings, folder: Path) -> Rule:
    """The rule that a run's settings name. folder: where the file of a round may lie while it is closed."""
    match settings.rule:
        case "mean":
            return WeightedMean
        case "trimmed-mean":
            return partial(TrimmedMean, trim=share(settings.trim), folder=folder)
        case "median":
            return partial(TrimmedMean, trim=all_but_the_middle, folder=folder)
        case "clipped-mean":
            return partial(ClippedMean, clip=settings.clip, folder=folder)


def share(trim: float) -> Trim:
    """floor(trim * n): of 10 values and 0.2, two at either end. (0.29 * 100 is a little less than 29, and means 29.)"""
    return lambda counts: np.floor(trim * np.asarray(counts) + 1e-9).astype(np.int64)


def all_but_the_middle(counts: Any) -> Any:
    """Leaves one value of an odd number, two of an even one: what is trimmed so far is the median."""
    return np.maximum(np.asarray(counts) - 1, 0) // 2


class TrimmedMean:
    """Per coordinate the mean of the values that are left when `trim` of them are left out at either end (Yin et al.,
    ICML 2018, arXiv:1803.01498: definition 2, and with `all_but_the_middle` definition 1, the median).

    Of n values up to trim(n) may be anything: the result lies between values of the others. Of n below 1 / share, and
    of two in the median, none is left out; `Aggregate.exposed` says how many coordinates that are. Updates count alike,
    as in the paper: their weights, which are what devices say of themselves, are not used.
    """

    def __init__(self, layout: ChannelLayout | None, *, overlap: Overlap, trim: Trim, folder: Path) -> None:
        self._rows = _Rows(layout, overlap, folder)
        self._trim = trim

    def add(self, update: Update) -> None:
        self._rows.add(update)

    def result(self, previous: Tensors) -> Aggregate:
        return self._rows.result(previous, self._middle, self._exposed)

    def _middle(self, values: Array, counts: Counts, before: Array) -> Array:
        values.sort(axis=0)  # what is not held comes last
        least = counts.min()
        if least == counts.max():
            left_out = int(self._trim(least))
            middle: Array = values[left_out : least - left_out].mean(axis=0, dtype=np.float64)
            return middle
        left_out, rank = self._trim(counts), np.arange(len(values))[:, None]
        inside = (rank >= left_out) & (rank < counts - left_out)
        sums = np.where(inside, values, 0).sum(axis=0, dtype=np.float64)
        return np.asarray(sums / np.maximum(inside.sum(axis=0), 1))

    def _exposed(self, counts: Counts) -> int:
        return int(np.count_nonzero(self._trim(counts) == 0))


class ClippedMean:
    """The weighted mean of what the updates changed, each first scaled down to a norm of at most `clip` (Sun et al.,
    2019, arXiv:1911.07963, section 3.2; without the noise):

        new = previous + sum(weight * min(1, clip / |update - previous|) * (update - previous)) / sum(weight)

    clip  None: the median of the round's norms. The norm is the L2 norm over all floats that the update holds

    A device can move the model by its share of the weight times `clip`, in any direction that it likes: what several do
    together is bounded, not removed. Weights are what devices say of themselves; `weighting = "uniform"` makes all 1.
    """

    def __init__(self, layout: ChannelLayout | None, *, overlap: Overlap, clip: float | None, folder: Path) -> None:
        self._rows = _Rows(layout, overlap, folder)
        self._weights: list[float] = []
        self._clip = clip

    def add(self, update: Update) -> None:
        self._rows.add(update)
        self._weights.append(update.weight)

    def result(self, previous: Tensors) -> Aggregate:
        norms = self._rows.norms(previous)
        clip = self._clip if self._clip is not None or not norms.size else float(np.median(norms))
        factors = np.ones(len(norms)) if clip is None else np.minimum(1.0, clip / np.maximum(norms, 1e-300))
        weights = np.asarray(self._weights)

        def mean(values: Array, counts: Counts, before: Array) -> Array:
            changes = values - before.astype(np.float64)
            total: Any = weights.sum()
            if counts.min() < len(values):
                lacking = np.isnan(changes)
                changes[lacking] = 0
                total = total - _weighted_sum(weights, lacking)
            moved = _weighted_sum(weights * factors, changes)
            return np.asarray(before + moved / np.where(total > 0, total, 1))

        few = self._clip is None and len(norms) < FEW
        return self._rows.result(previous, mean, lambda counts: len(counts) if few else 0)


class _Combine(Protocol):
    def __call__(self, values: Array, counts: Counts, before: Array) -> Array:
        """The new values of some coordinates. values: row by update, column by coordinate, NaN where it is not held; it
        may be overwritten. counts: how many hold each, at least one. before: their previous values."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a row, and what it is like when dense."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def hole(self) -> Any:
        """What stands where the update does not hold a coordinate; it is sorted behind everything else. An integer that
        really is the largest of its type counts as not held."""
        return np.nan if self.dtype.kind == "f" else np.iinfo(self.dtype).max


class _Rows:
    """The updates of a round in a file, a row of dense tensors for each."""

    def __init__(self, layout: ChannelLayout | None, overlap: Overlap, folder: Path) -> None:
        self._layout = layout
        self._overlap = overlap
        self._holders = Holders(layout, overlap)
        self._folder = folder
        self._stack = ExitStack()
        self._places: dict[str, _Place] = {}
        self._length = 0
        self._count = 0

    def add(self, update: Update) -> None:
        held = self._holders.add(update.subnet.held)
        tensors = update.subnet.tensors
        if not self._places:
            self._plan(tensors)
        for name, place in self._places.items():
            kept = self._holders.kept(name, held)
            if place.size:
                row = np.full(place.shape, place.hole, place.dtype)
                row[selection(kept, place.shape)] = tensors[name]
                self._write(row, self._count * self._length + place.offset)
        self._count += 1

    def norms(self, previous: Tensors) -> npt.NDArray[np.float64]:
        """Of each update, the L2 norm of its difference to `previous` over all floats that it holds."""
        squares = np.zeros(self._count)
        for name, place in self._places.items():
            if place.dtype.kind == "f":
                for part, values in self._blocks(place):
                    changes = values - previous[name].reshape(-1)[part].astype(np.float64)
                    np.nan_to_num(changes, copy=False)
                    squares += np.einsum("ij,ij->i", changes, changes)
        return np.sqrt(squares)

    def result(self, previous: Tensors, combine: _Combine, exposed: Callable[[Counts], int]) -> Aggregate:
        """The new global model; the file is gone then. exposed: of the coordinates that so many hold, how many are at
        the mercy of who holds them."""
        tensors, averaged, open_to_all = dict(previous), 0, 0
        with self._stack:
            for name, before in previous.items():
                if (place := self._places.get(name)) is None:
                    continue
                flat, new = before.reshape(-1), before.flatten()
                for part, values in self._blocks(place):
                    counts = self._counts(values, place)
                    used = counts == self._count if self._overlap is Overlap.ALL else counts > 0
                    averaged += int(np.count_nonzero(used))
                    open_to_all += exposed(counts[used])
                    if not used.all():
                        values, counts = values[:, used], counts[used]
                    if counts.size:
                        middle = _lower_median if place.dtype.kind != "f" else combine
                        new[part][used] = middle(values, counts, flat[part][used])
                tensors[name] = new.reshape(before.shape)
        return self._holders.aggregate(tensors, open_to_all / averaged if averaged else 0.0)

    def _plan(self, tensors: Tensors) -> None:
        """Lay out a row: of any update, for all have the same names and dtypes."""
        self._descriptor = self._stack.enter_context(_nameless(self._folder))
        for name, array in tensors.items():
            axes = self._layout.axes.get(name) if self._layout else None
            shape = array.shape if axes is None else dense_shape(array.shape, axes)
            dtype = np.dtype(np.int8) if array.dtype.kind == "b" else array.dtype
            self._places[name] = place = _Place(self._length, shape, dtype)
            self._length += place.size * dtype.itemsize

    def _counts(self, values: Array, place: _Place) -> Counts:
        lacking = np.isnan(values) if place.dtype.kind == "f" else values == place.hole
        return np.asarray(len(values) - np.count_nonzero(lacking, axis=0))

    def _blocks(self, place: _Place) -> Iterator[tuple[slice, Array]]:
        """The tensor's coordinates in parts, with the values of all updates in each: row by update."""
        width = max(1, BLOCK_BYTES // max(1, self._count * place.dtype.itemsize))
        for start in range(0, place.size, width):
            values = np.empty((self._count, min(width, place.size - start)), place.dtype)
            for number, row in enumerate(values):
                self._read(row, number * self._length + place.offset + start * place.dtype.itemsize)
            yield slice(start, start + width), values

    def _write(self, array: Array, position: int) -> None:
        view = array.reshape(-1).data.cast("B")
        while view:
            written = os.pwrite(self._descriptor, view, position)
            view, position = view[written:], position + written

    def _read(self, array: Array, position: int) -> None:
        view = array.data.cast("B")
        while view:
            read = os.preadv(self._descriptor, [view], position)
            view, position = view[read:], position + read


def _weighted_sum(weights: Array, rows: Array) -> Array:
    """Not by BLAS, whose last bits depend on its threads."""
    return np.asarray(np.einsum("i,ij->j", weights, rows))


@contextmanager
def _nameless(folder: Path) -> Iterator[int]:
    """The descriptor of a new file that is gone with it."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        yield file.fileno()


def _lower_median(values: Array, counts: Counts, before: Array) -> Array:
    values.sort(axis=0)
    return np.asarray(values[(counts - 1) // 2, np.arange(values.shape[1])])
