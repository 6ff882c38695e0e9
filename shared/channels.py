"""Which channels of a model can be removed, and where each of them lies in every tensor. Numpy only.

A *unit* is one removable channel: all coordinates that only make sense together (the convolution's output row, its
BatchNorm coordinates, the columns of every consumer, ...). Units that the same layers produce form a *group*; a
selection of channels is one bool per unit of every group (`Masks`). The layout is a pure function of the architecture,
so two sides that resolved the same digest describe any subnet by its masks alone.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shared.errors import MalformedPayload
from shared.tensors import Masks

Index: TypeAlias = npt.NDArray[np.int64]
AxisUnits: TypeAlias = npt.NDArray[np.int64]
"""Unit behind each position of an axis, numbered through all groups in order; FIXED where a position always stays."""

FIXED = -1


@dataclass(frozen=True, eq=False)
class ChannelLayout:
    """The channel groups of one architecture. Two layouts are the same if their digests are.

    groups  group -> number of units; the name is the module path of the first layer that produces them, in model order
    axes    tensor (parameter or buffer) -> per axis the unit of every position, None where no channel lies along it;
            tensors without any such axis are left out
    digest  SHA-256 of both
    """

    groups: dict[str, int]
    axes: dict[str, tuple[AxisUnits | None, ...]]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(self))

    def full(self) -> Masks:
        """Everything held."""
        return {group: np.ones(units, dtype=np.bool_) for group, units in self.groups.items()}

    def check(self, held: Masks) -> None:
        """Raise MalformedPayload unless `held` has exactly our groups, of the right length, none of them empty."""
        if held.keys() != self.groups.keys():
            odd = sorted(held.keys() ^ self.groups.keys())
            raise MalformedPayload(f"channel masks do not fit this model: {', '.join(odd[:5])} missing or unknown")
        for group, units in self.groups.items():
            mask = held[group]
            if mask.shape != (units,) or mask.dtype != np.bool_:
                raise MalformedPayload(
                    f"mask of {group} is {mask.dtype}{list(mask.shape)}; the group needs bool[{units}]"
                )
            if not mask.any():
                raise MalformedPayload(f"mask of {group} holds no channel: at least one must stay")

    def index(self, name: str, held: Masks) -> tuple[Index | None, ...]:
        """Per axis of the tensor the held positions, ascending; None: all of them. () for a tensor without channels."""
        axes = self.axes.get(name)
        if axes is None:
            return ()
        stays = self._stays(held)
        kept = [None if units is None else np.flatnonzero(stays[units]) for units in axes]
        return tuple(
            None if units is None or positions is None or positions.size == units.size else positions
            for units, positions in zip(axes, kept, strict=True)
        )

    def shape(self, name: str, dense_shape: tuple[int, ...], held: Masks) -> tuple[int, ...]:
        """Shape of the tensor cut down to the held channels."""
        return self.shapes({name: dense_shape}, held)[name]

    def shapes(self, dense: Mapping[str, tuple[int, ...]], held: Masks) -> dict[str, tuple[int, ...]]:
        """The same for many tensors."""
        stays = self._stays(held)
        return {
            name: tuple(
                size if units is None else int(np.count_nonzero(stays[units]))
                for size, units in zip(shape, self.axes.get(name, (None,) * len(shape)), strict=True)
            )
            for name, shape in dense.items()
        }

    def _stays(self, held: Masks) -> npt.NDArray[np.bool_]:
        """One bool per unit of all groups in order, and a True at the end, which FIXED (-1) points at."""
        return np.concatenate([*(held[group] for group in self.groups), [True]]).astype(np.bool_)


def selection(index: tuple[Index | None, ...], shape: tuple[int, ...]) -> tuple[Index, ...]:
    """What `array[...]` takes to read or write the positions of `ChannelLayout.index` in a dense array of that shape.

    Covers the axes up to the last one that is cut; () when nothing is cut, which selects the whole array.
    """
    cut = [axis for axis, positions in enumerate(index) if positions is not None]
    if not cut:
        return ()
    leading = [np.arange(shape[axis]) if index[axis] is None else index[axis] for axis in range(cut[-1] + 1)]
    return tuple(np.ix_(*leading))


def _digest(layout: ChannelLayout) -> str:
    digest = hashlib.sha256(json.dumps(layout.groups).encode())
    for name, axes in sorted(layout.axes.items()):
        digest.update(json.dumps([name, [None if units is None else units.size for units in axes]]).encode())
        for units in axes:
            if units is not None:
                digest.update(units.astype("<i8").tobytes())
    return digest.hexdigest()
