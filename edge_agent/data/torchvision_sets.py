"""The data sets that torchvision knows how to read. It is imported when one is asked for, and downloads nothing."""

from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.data.dataset import PIXELS, Dataset, Normalization
from edge_agent.data.files import required
from shared.errors import DataError


def mnist(path: Path | None) -> Dataset:
    """MNIST, N x 1 x 28 x 28, with its own test split; path: a folder that torchvision put it in."""
    return _read("MNIST", path)


def fashion_mnist(path: Path | None) -> Dataset:
    """Fashion-MNIST, N x 1 x 28 x 28, with its own test split; path as for MNIST."""
    return _read("FashionMNIST", path)


def cifar10(path: Path | None) -> Dataset:
    """CIFAR-10, N x 3 x 32 x 32, with its own test split; path as for MNIST."""
    return _read("CIFAR10", path)


def _read(name: str, path: Path | None) -> Dataset:
    root = required(path, f"the folder that torchvision put {name} in")
    from shared.torchvision_ops import torchvision  # imports torch, which no other source needs

    reader = getattr(torchvision().datasets, name)
    try:
        train, test = (reader(str(root), train=part, download=False) for part in (True, False))
    except RuntimeError as error:
        raise DataError(
            f"{root} does not hold {name} ({error}); fetch it once: "
            f"python -c 'import torchvision; torchvision.datasets.{name}(\"{root}\", download=True)'"
        ) from error
    inputs = np.concatenate([_pixels(train.data), _pixels(test.data)])
    labels = np.concatenate([np.asarray(train.targets, np.int64), np.asarray(test.targets, np.int64)])
    return Dataset(
        inputs, labels, tuple(train.classes), Normalization(PIXELS, PIXELS), test=np.arange(len(labels)) >= len(train)
    )


def _pixels(data: Any) -> Any:
    """N x H x W or N x H x W x C bytes as N x C x H x W."""
    array = np.asarray(data)
    return array[:, None] if array.ndim == 3 else np.moveaxis(array, -1, 1)
