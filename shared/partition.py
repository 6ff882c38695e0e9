"""Which names of a model's state belong to which part: by components of the module path, never by substring."""

from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from shared.errors import ConfigError, ModelError
from shared.plugins import nearest


def names_under(model: nn.Module, prefixes: Iterable[str]) -> frozenset[str]:
    """State names of the modules (or single tensors) at the given paths: `fc1` holds `fc1.weight`, never `fc10.weight`.

    Raises ConfigError for a path under which the model has no state.
    """
    names = list(model.state_dict())
    found: set[str] = set()
    for prefix in prefixes:
        under = {name for name in names if name == prefix or name.startswith(f"{prefix}.")}
        if not under:
            paths = [path for path, _ in model.named_modules() if path]
            raise ConfigError(f"the model has no parameters under {prefix!r}{nearest(prefix, paths)}")
        found |= under
    return frozenset(found)


def head_names(model: nn.Module, prefixes: Sequence[str] = ()) -> frozenset[str]:
    """State names of the head: what lies under `prefixes`, or without them the classifier.

    The classifier is the last linear layer in order of registration; in a model without any, the last convolution.
    Raises ModelError where there is neither.
    """
    return names_under(model, prefixes or [_classifier(model)])


def representation_names(model: nn.Module) -> frozenset[str]:
    """State names of the early layers: what is registered before the first linear layer; in a model without any, all
    but the classifier.

    Raises ModelError where nothing comes before it.
    """
    linear = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    names = list(model.state_dict())
    later = names_under(model, linear[:1]) if linear else head_names(model)
    early = frozenset(names[: min(map(names.index, later))])
    if not early:
        raise ModelError(
            f"{type(model).__name__} has no layers before its first linear one: name those that are early with the "
            "algorithm's `local` setting"
        )
    return early


def batch_norm_names(model: nn.Module) -> frozenset[str]:
    """State names of all BatchNorm layers: affine parameters, running statistics and counters."""
    layers = model.named_modules(remove_duplicate=False)
    return frozenset(
        f"{path}.{name}" if path else name
        for path, layer in layers
        if isinstance(layer, _BatchNorm)
        for name in layer.state_dict()
    )


def _classifier(model: nn.Module) -> str:
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, _ConvNd)
    for kind in kinds:
        paths: list[str] = [path for path, layer in model.named_modules() if isinstance(layer, kind)]
        if paths:
            return paths[-1]
    raise ModelError(
        f"{type(model).__name__} has neither a linear layer nor a convolution, so no head can be found; "
        "name the head's modules with the algorithm's `head` setting"
    )
