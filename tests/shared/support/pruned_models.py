"""Models that the tests of pruning share."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shared.channel_trace import channel_layout
from shared.channels import ChannelLayout
from shared.models import build_model, example_input
from shared.torchvision_ops import torchvision


@functools.cache
def resolved(name: str, **options: int) -> tuple[nn.Module, ChannelLayout, Tensor]:
    """Model (never change it), layout, example. BatchNorm is made to matter: nothing in it is 0 or 1."""
    model, example = build_model(name, options, seed=0), example_input(name, options)
    torch.manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model, channel_layout(model, example), example


def small_vgg() -> nn.Module:
    vgg = torchvision().models.vgg
    features = vgg.make_layers([16, "M", 32, "M", 64, 64, "M", 64, 64, "M"], batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.Linear(64, 10))


def small_densenet() -> nn.Module:
    model: nn.Module = torchvision().models.DenseNet(8, (2, 3, 3, 2), num_init_features=16, num_classes=10)
    return model


def small_resnext() -> nn.Module:
    resnet = torchvision().models.resnet
    model: nn.Module = resnet.ResNet(resnet.Bottleneck, [1, 2, 1, 1], 10, groups=8, width_per_group=4)
    return model


def small_mobilenet() -> nn.Module:
    blocks = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    model: nn.Module = torchvision().models.MobileNetV2(10, 0.5, inverted_residual_setting=blocks)
    return model


BUILT = [
    "smallcnn",
    "lenet5",
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "googlenet",
    "squeezenet1_1",
    "mnasnet0_5",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
]
ZOO: dict[str, Callable[[], nn.Module]] = {
    **{name: functools.partial(build_model, name, {"channels": 3, "size": 32}, seed=0) for name in BUILT},
    "vgg with batch norm": small_vgg,
    "densenet": small_densenet,
    "resnext": small_resnext,
}
