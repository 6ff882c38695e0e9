"""The models that come with Talaria. Each takes its options as keyword arguments with defaults.

Every model maps a batch [n, channels, size, size] (images) or [n, channels, length] (series) to [n, classes] scores.
"""

from typing import Literal

from torch import nn

from shared.errors import ConfigError
from shared.torchvision_ops import torchvision

Stem = Literal["cifar", "imagenet"]


def _block(entering: int, leaving: int) -> list[nn.Module]:
    return [nn.Conv2d(entering, leaving, 3, padding=1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU()]


def _features(size: int, *, kernel: int, padding: int) -> int:
    """Side of what two convolutions, each followed by 2x2 pooling, leave of an image; the first one is padded."""
    side = ((size + 2 * padding - kernel + 1) // 2 - kernel + 1) // 2
    if side < 1:
        raise ConfigError(f"size = {size} is too small for this model: nothing is left after its convolutions")
    return side


def smallcnn(*, channels: int = 1, size: int = 28, classes: int = 10, width: int = 16) -> nn.Module:
    """Two 3x3 convolutions with pooling and one linear layer, no BatchNorm."""
    side = size // 4
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * side * side, classes),
    )  # fmt: skip


def digitscnn(*, channels: int = 1, size: int = 8, classes: int = 10, width: int = 16) -> nn.Module:
    """Three convolutions with BatchNorm for scikit-learn's 8x8 digits: 38 thousand parameters."""
    side = size // 4
    return nn.Sequential(
        *_block(channels, width), nn.MaxPool2d(2),
        *_block(width, 2 * width),
        *_block(2 * width, 4 * width), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * width * side * side, 56), nn.ReLU(), nn.Linear(56, classes),
    )  # fmt: skip


def lenet_small(*, channels: int = 1, size: int = 28, classes: int = 10) -> nn.Module:
    """Two 5x5 convolutions (8, 16) with pooling, then 64 hidden units: the reference setting on MNIST."""
    side = _features(size, kernel=5, padding=0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * side * side, 64), nn.ReLU(), nn.Linear(64, classes),
    )  # fmt: skip


def lenet5(*, channels: int = 1, size: int = 28, classes: int = 10) -> nn.Module:
    """LeNet-5 with ReLU and maximum pooling."""
    side = _features(size, kernel=5, padding=2)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * side * side, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes),
    )  # fmt: skip


def har1d(*, channels: int = 6, length: int = 128, classes: int = 6, width: int = 32) -> nn.Module:
    """Three 1-D convolutions over windows of inertial measurements, averaged over time."""

    def block(entering: int, leaving: int) -> list[nn.Module]:
        return [nn.Conv1d(entering, leaving, 5, padding=2, bias=False), nn.BatchNorm1d(leaving), nn.ReLU()]

    return nn.Sequential(
        *block(channels, width), nn.MaxPool1d(2),
        *block(width, 2 * width), nn.MaxPool1d(2),
        *block(2 * width, 2 * width), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(2 * width, classes),
    )  # fmt: skip


def resnet18(*, channels: int = 3, size: int = 32, classes: int = 10, stem: Stem = "cifar") -> nn.Module:
    """ResNet-18; the stem `cifar` keeps the resolution (3x3 convolution, no pooling), `imagenet` quarters it."""
    model: nn.Module = torchvision().models.resnet18(weights=None, num_classes=classes)
    if stem == "cifar":
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return model


def mobilenet_v2(*, channels: int = 3, size: int = 32, classes: int = 10, stem: Stem = "cifar") -> nn.Module:
    """MobileNetV2; the stem `cifar` keeps the resolution, `imagenet` halves it."""
    model = torchvision().models.mobilenet_v2(weights=None, num_classes=classes)
    if stem == "cifar" or channels != 3:
        stride = 1 if stem == "cifar" else 2
        model.features[0][0] = nn.Conv2d(channels, 32, 3, stride=stride, padding=1, bias=False)
    assert isinstance(model, nn.Module)
    return model
