"""Examples for inference from files: arrays, tables, images, folders of images."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from shared.errors import DataError
from shared.tensors import Array

IMAGES = (".png", ".jpg", ".jpeg")
SUFFIXES = (".npz", ".npy", ".csv", *IMAGES)


def read_examples(paths: Iterable[Path], shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    """(name, example) of everything in the files, and in the images of the folders, in order.

    shape  of one example, float32. Images (0 to 255) are resized and turned into as many channels; arrays must have it,
           with or without a leading batch (npz: the array `inputs`, or the only one). A table has one flattened example
           per row, or, for a model of time series, a channel per column: it is cut into as many whole windows as it
           has. A first row of names is skipped.

    DataError names the file, what is wrong with it and what would be right.
    """
    for path in paths:
        if path.is_dir():
            images = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)
            if not images:
                raise DataError(f"{path}: no images ({', '.join(IMAGES)}) in this folder")
            yield from read_examples(images, shape)
        else:
            yield from _read_file(path, shape)


def _read_file(path: Path, shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: cannot read examples from {suffix!r}; use one of {', '.join(SUFFIXES)}, or a folder")
    try:
        if suffix in IMAGES:
            yield str(path), _image(path, shape)
            return
        array = _table(path, shape) if suffix == ".csv" else _array(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    if array.shape == shape:
        yield str(path), array
        return
    if array.shape[1:] != shape:
        raise DataError(f"{path}: shape {array.shape} is neither {shape} nor a batch of it")
    for index, example in enumerate(array):
        yield f"{path}[{index}]", example


def _array(path: Path) -> Array:
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:
            names = list(loaded)
            if "inputs" not in names and len(names) != 1:
                raise ValueError(f"has the arrays {', '.join(names)}; call the one to use `inputs`")
            array = loaded["inputs" if "inputs" in names else names[0]]
    if array.dtype.kind not in "fiub":
        raise ValueError(f"dtype {array.dtype} is not numeric")
    return array.astype(np.float32)


def _table(path: Path, shape: tuple[int, ...]) -> Array:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if lines:
        try:
            float(lines[0].split(",")[0])
        except ValueError:
            del lines[0]
    if not lines:
        raise ValueError("no rows")
    table = np.loadtxt(lines, delimiter=",", dtype=np.float32, ndmin=2)
    if table.shape[1] == np.prod(shape):
        return table.reshape(-1, *shape)
    if len(shape) == 2 and table.shape[1] == shape[0] and len(table) >= shape[1]:
        whole = len(table) // shape[1]
        return table[: whole * shape[1]].reshape(whole, shape[1], shape[0]).swapaxes(1, 2)
    return table


def _image(path: Path, shape: tuple[int, ...]) -> Array:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("images need Pillow: pip install pillow") from error
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"{path}: the model takes examples of shape {shape}, not images")
    channels, height, width = shape
    with Image.open(path) as image:
        pixels = image.convert("L" if channels == 1 else "RGB").resize((width, height))
    array = np.asarray(pixels, dtype=np.float32)
    return array.reshape(height, width, channels).transpose(2, 0, 1)
