"""The sources by name: plain functions from a path and options to a Dataset. A new one is a function and a line in
SOURCES, or `package.module:callable` in the settings."""

import gzip
import importlib.util
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from edge_agent.data.dataset import PIXELS, Dataset, Normalization, Raw
from edge_agent.data.files import required
from edge_agent.data.images import images
from edge_agent.data.timeseries import windows
from edge_agent.data.torchvision_sets import cifar10, fashion_mnist, mnist
from shared.errors import DataError


def digits(path: Path | None) -> Dataset:
    """scikit-learn's 1797 handwritten digits, N x 1 x 8 x 8, pixels 0 to 16.

    path: the digits.csv.gz of scikit-learn; by default that of the installed one, whose code is not imported.
    """
    file = path or installed_digits()
    try:
        with gzip.open(file, "rt") as lines:
            table = np.loadtxt(lines, np.int64, delimiter=",", ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{file}: is not the digits.csv.gz of scikit-learn: {error}") from error
    if table.shape[1] != 65:
        raise DataError(f"{file}: has {table.shape[1]} columns, digits.csv.gz has 64 pixels and a label")
    inputs = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8)
    return Dataset(inputs, table[:, -1], tuple(map(str, range(10))), Normalization((8.0,), (8.0,)))


def installed_digits() -> Path:
    """The digits.csv.gz of the installed scikit-learn, which is not imported. DataError where it is not installed."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError(
            "the source `digits` is a file of scikit-learn, which is not installed: pip install scikit-learn, or set "
            "data.path to its digits.csv.gz"
        )
    return Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"


def npz(
    path: Path | None,
    *,
    channels: Literal["first", "last", "none"] | None = None,
    classes: tuple[str, ...] = (),
) -> Dataset:
    """Arrays x, y or x_train, y_train, x_test, y_test of one .npz file.

    channels  which axis of x holds the channels, `none` if there is none, as in N x H x W; by default `none` where x
              has three axes, else `first`
    classes   what the labels mean, by default their numbers up to the largest: give it where a device lacks classes
    Bytes are normalized like pixels; other types by what the training split measures, unless data.mean is set.
    """
    file = required(path, "the .npz file of this device")
    arrays = _arrays(file)
    if {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        _same_shape(file, arrays)
        inputs = np.concatenate([arrays["x_train"], arrays["x_test"]])
        labels = np.concatenate([arrays["y_train"], arrays["y_test"]])
        test = np.arange(len(labels)) >= len(arrays["y_train"])
    elif {"x", "y"} <= arrays.keys():
        inputs, labels, test = arrays["x"], arrays["y"], None
    else:
        raise DataError(
            f"{file} holds {', '.join(arrays) or 'nothing'}: x and y, or x_train, y_train, x_test and y_test are needed"
        )
    if inputs.ndim < 2 or labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise DataError(
            f"{file}: inputs are {inputs.dtype} {inputs.shape}, labels {labels.dtype} {labels.shape}: "
            "examples x ... and one integer per example are needed"
        )
    numbers = labels.astype(np.int64)
    known = classes or tuple(map(str, range(int(numbers.max()) + 1)))
    pixels = Normalization(PIXELS, PIXELS) if inputs.dtype == np.uint8 else None
    return Dataset(_channels_first(inputs, channels), numbers, known, pixels, test=test)


def _arrays(file: Path) -> dict[str, Raw]:
    """The arrays of the file that are needed. Pickled objects are refused: reading them would run what they say."""
    try:
        content = np.load(file, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise DataError(f"{file} is a single array: save inputs and labels together with numpy.savez")
        with content:
            wanted = [name for name in content.files if name in ("x", "y") or name[2:] in ("train", "test")]
            arrays = {name: content[name] for name in wanted}
            if strange := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
                raise ValueError(f"{', '.join(strange)} is no array")
            return arrays
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        # numpy takes whatever it does not know for a pickle, and recommends to load it nevertheless
        why = "it holds something else, and pickled objects are never read" if "pickle" in str(error) else error
        raise DataError(f"{file}: is not an .npz file of plain arrays: {why}") from error


def _same_shape(file: Path, arrays: Mapping[str, Raw]) -> None:
    for name in ("x", "y"):
        train, test = arrays[f"{name}_train"], arrays[f"{name}_test"]
        if not train.ndim or not test.ndim:
            raise DataError(f"{file}: {name}_train and {name}_test must be arrays, not single numbers")
        if train.shape[1:] != test.shape[1:]:
            raise DataError(f"{file}: {name}_train is of shape {train.shape}, {name}_test of {test.shape}")


def _channels_first(inputs: Raw, channels: str | None) -> Raw:
    match channels or ("none" if inputs.ndim == 3 else "first"):
        case "none":
            return inputs[:, None]
        case "last":
            return np.moveaxis(inputs, -1, 1)
    return inputs


Source = Callable[..., Dataset]
"""source(path, **options): `path` is None where the settings give none."""

SOURCES: Mapping[str, Source] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "npz": npz,
    "images": images,
    "csv": windows,
}
