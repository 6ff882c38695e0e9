"""Models by name: the zoo, every classifier of torchvision, or your own `package.module:callable`.

Your own callable gets the options as keyword arguments and gives an `nn.Module`. The shape of one input is its
attribute `input_shape`, or the option `input_shape = [channels, height, width]`, which then is not passed on.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shared import models_zoo
from shared.errors import ConfigError
from shared.messages import Hyperparameter
from shared.plugins import load_object, nearest
from shared.torchvision_ops import torchvision

ZOO: dict[str, Callable[..., nn.Module]] = {
    "smallcnn": models_zoo.smallcnn,
    "digitscnn": models_zoo.digitscnn,
    "lenet-small": models_zoo.lenet_small,
    "lenet5": models_zoo.lenet5,
    "har1d": models_zoo.har1d,
    "resnet18": models_zoo.resnet18,
    "mobilenet_v2": models_zoo.mobilenet_v2,
}


def build_model(name: str, options: Mapping[str, Hyperparameter], *, seed: int) -> nn.Module:
    """The model, initialized from `seed` alone: the same numbers on every machine of one torch version.

    The global random state is left as it was. Raises ConfigError for a name or an option that does not exist.
    """
    builder = _builder(name)
    chosen = {key: value for key, value in options.items() if key != "input_shape"} if ":" in name else dict(options)
    _check(name, builder, chosen)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = builder(**chosen)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def input_shape(name: str, options: Mapping[str, Hyperparameter]) -> tuple[int, ...]:
    """Shape of one example, without the batch."""
    builder = _builder(name)
    if ":" in name:
        return _own_shape(name, options.get("input_shape", getattr(builder, "input_shape", None)))
    _check(name, builder, options)
    defaults = {key: parameter.default for key, parameter in inspect.signature(builder).parameters.items()}
    sizes: dict[str, Any] = {**defaults, **options}
    return (sizes["channels"], sizes["length"]) if "length" in sizes else (sizes["channels"], *[sizes["size"]] * 2)


def example_input(name: str, options: Mapping[str, Hyperparameter]) -> Tensor:
    """A batch of two random examples (float32), always the same."""
    return torch.randn(2, *input_shape(name, options), generator=torch.Generator().manual_seed(0))


def _builder(name: str) -> Callable[..., nn.Module]:
    if ":" in name:
        found = load_object(name)
        if not callable(found):
            raise ConfigError(f"{name} is a {type(found).__name__}, not a callable that gives a model")
        return found
    if name in ZOO:
        return ZOO[name]
    models = torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(
            f"unknown model {name!r}{nearest(name, [*ZOO, *known])}; use one of {', '.join(ZOO)}, "
            "a classifier of torchvision, or package.module:callable"
        )

    def classifier(*, channels: int = 3, size: int = 224, classes: int = 10) -> nn.Module:
        if channels != 3:
            raise ConfigError(f"{name} takes images of 3 channels, not {channels}")
        extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **extra)
        return model

    return classifier


def _check(name: str, builder: Callable[..., nn.Module], options: Mapping[str, Any]) -> None:
    """Refuse options that the builder does not take, and values that are not what its annotations say."""
    parameters = inspect.signature(builder).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    types = typing.get_type_hints(builder) if ":" not in name else {}
    for key, value in options.items():
        if key not in parameters and not open_ended:
            takes = ", ".join(parameters) or "none"
            raise ConfigError(f"model {name} has no option {key!r}{nearest(key, parameters)}; it takes {takes}")
        wanted = types.get(key)
        if wanted is int and (type(value) is not int or value < 1):
            raise ConfigError(f"option {key} = {value!r} of model {name} must be a whole number of at least 1")
        if typing.get_origin(wanted) is typing.Literal and value not in typing.get_args(wanted):
            words = ", ".join(map(repr, typing.get_args(wanted)))
            raise ConfigError(f"option {key} = {value!r} of model {name} must be one of {words}")


def _own_shape(name: str, shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or not shape or any(type(size) is not int or size < 1 for size in shape):
        raise ConfigError(
            f"the input shape of {name} is {shape!r}; give the callable an attribute `input_shape`, such as "
            "(3, 32, 32), or set the model's option input_shape = [3, 32, 32]"
        )
    return tuple(shape)
