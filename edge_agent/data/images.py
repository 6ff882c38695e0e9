"""Images in one folder per class, as files or inside zips: [train/ or test/] class / file."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_agent.data.dataset import PIXELS, Dataset, Integers, Normalization, Raw
from edge_agent.data.files import File, read, required, walk
from edge_agent.data.labels import as_indices
from shared.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def images(
    path: Path | None, *, classes: tuple[str, ...] = (), color: bool = True, size: tuple[int, int] | None = None
) -> Dataset:
    """N x 3 x H x W pixels (N x 1 without `color`) of all images in a folder or a zip; needs Pillow.

    The folder of a file is its class, the folder above may be called `test` for the source's own test split. Only
    the images that a device needs are read. classes: all of the fleet, where this device may lack some.
    size: (height, width) that images are brought to; without it they must all have the same.
    """
    root = required(path, "a folder or zip with one folder per class")
    files = [file for file in walk(root) if file.name.lower().endswith(SUFFIXES)]
    folders = [file.name.split("/")[:-1] for file in files]
    if not files or not all(folders):
        raise DataError(f"{root} does not hold its images in one folder per class ({', '.join(SUFFIXES)})")
    test = np.array([parts[-2:-1] == ["test"] for parts in folders])

    def pixels(indices: Integers) -> Raw:
        return _decode([files[index] for index in indices], color, size)

    known, labels = as_indices([parts[-1] for parts in folders], classes, str(root))
    return Dataset(pixels, labels, known, Normalization(PIXELS, PIXELS), test=test if test.any() else None)


def _decode(files: Sequence[File], color: bool, size: tuple[int, int] | None) -> Raw:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("the source `images` needs Pillow: pip install pillow") from error
    decoded: list[Raw] = []
    for file, content in zip(files, read(files), strict=True):
        try:
            with Image.open(io.BytesIO(content)) as opened:
                image = opened.convert("RGB" if color else "L")
                if size is not None and image.size != (size[1], size[0]):
                    image = image.resize((size[1], size[0]))
                pixels = np.asarray(image, np.uint8)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{file.path}: {file.name} is not an image that can be read: {error}") from error
        if decoded and pixels.shape != decoded[0].shape:
            raise DataError(
                f"{file.path}: {file.name} is {pixels.shape[1]}x{pixels.shape[0]}, {files[0].name} is "
                f"{decoded[0].shape[1]}x{decoded[0].shape[0]}: set data.options.size = [height, width]"
            )
        decoded.append(pixels)
    stacked = np.stack(decoded)
    return np.moveaxis(stacked, -1, 1) if color else stacked[:, None]
