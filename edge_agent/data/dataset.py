"""What a source delivers, and what a device makes of it: numpy only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shared.errors import DataError

Raw: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]

PIXELS = (127.5,)
"""Mean and deviation that bring pixels of one byte into [-1, 1]."""


@dataclass(frozen=True)
class Normalization:
    """(raw - mean) / std, with one value or one per channel (axis 1), in the units of the raw inputs."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def measured(cls, raw: Raw) -> "Normalization":
        """Mean and deviation of every channel; a constant channel is only centred."""
        channels = np.moveaxis(raw.astype(np.float64), 1, 0).reshape(raw.shape[1], -1)
        deviation = channels.std(axis=1)
        return cls(tuple(channels.mean(axis=1).tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist()))

    def apply(self, raw: Raw) -> Floats:
        """Normalized float32 inputs, N x C x ..., as a contiguous copy. DataError for wrong channels."""
        if len(self.mean) not in (1, raw.shape[1]):
            raise DataError(
                f"data.mean has {len(self.mean)} values, the inputs have {raw.shape[1]} channels (axis 1 of "
                f"{raw.shape}): give one value, or one per channel"
            )
        shape = (1, -1) + (1,) * (raw.ndim - 2)
        inputs = raw.astype(np.float32, order="C")
        inputs -= np.asarray(self.mean, np.float32).reshape(shape)
        inputs /= np.asarray(self.std, np.float32).reshape(shape)
        return inputs


@dataclass(frozen=True)
class Dataset:
    """Everything a source has, before it is divided.

    inputs         raw, N x C x H x W, N x C x L or N x C, any number type; or a function from indices to such an array,
                   where reading all of them would be waste
    labels         integers, N: indices into `classes`
    classes        what the labels mean, the same on every device of a fleet
    normalization  None: measured on the training split of each device
    owners         N integers: whose example it is, for the natural partition
    test           N booleans: the source's own test split, which is then respected
    overlap        None where examples are independent. Else they stand in the order of time, and one shares raw data
                   with up to `overlap` of its neighbours on each side: splits are then cut in time, leaving a gap
    """

    inputs: Raw | Callable[[Integers], Raw]
    labels: Integers
    classes: tuple[str, ...]
    normalization: Normalization | None = None
    owners: Integers | None = None
    test: Booleans | None = None
    overlap: int | None = None

    def __post_init__(self) -> None:
        """DataError when the parts do not fit each other."""
        if self.labels.ndim != 1 or not np.issubdtype(self.labels.dtype, np.integer):
            raise DataError(f"labels are {self.labels.dtype} of shape {self.labels.shape}: one integer per example")
        count = len(self.labels)
        if not count:
            raise DataError("there are no examples")
        inputs = count if callable(self.inputs) else len(self.inputs)
        sizes = {"inputs": inputs} | {
            name: len(array) for name, array in (("owners", self.owners), ("test", self.test)) if array is not None
        }
        for name, size in sizes.items():
            if size != count:
                raise DataError(f"{size} {name} for {count} labels: there must be one each")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(
                f"labels go from {low} to {high}, classes are {len(self.classes)}: labels are indices into the classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Integers) -> Raw:
        """Raw inputs of these examples. DataError when they are no finite numbers with a channel axis."""
        raw = self.inputs(indices) if callable(self.inputs) else self.inputs[indices]
        if raw.ndim < 2 or raw.dtype.kind not in "biuf":
            raise DataError(
                f"inputs are {raw.dtype} of shape {raw.shape}: numbers, examples x channels x ..., are needed"
            )
        if raw.dtype.kind == "f" and not np.isfinite(raw).all():
            raise DataError("inputs contain NaN or infinite values: clean them first")
        return raw


@dataclass(frozen=True)
class Examples:
    """inputs: float32, normalized, N x C x ...; labels: int64, N."""

    inputs: Floats
    labels: Integers

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DeviceData:
    """What one device has. Decisions are taken on `validation`; `test` decides nothing. All three hold examples.

    classes        what the labels mean
    normalization  what was applied to the raw inputs: belongs beside an exported model
    """

    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...]
    normalization: Normalization

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, without the batch axis."""
        return self.train.inputs.shape[1:]
