"""What the labelled pass shows to its rules: one operation with its operands, and the pass itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from shared.channel_labels import Labels


@dataclass(frozen=True)
class Call:
    """One operation of the forward pass, after it ran."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def data(self) -> Any:
        """The first operand."""
        return self.argument(0, "input")

    @property
    def settings(self) -> tuple[Any, ...]:
        """Positional arguments after the first operand."""
        return self.args[1:]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def on(self, data: Any) -> Any:
        """The same operation with another first operand."""
        keywords = {name: value for name, value in self.kwargs.items() if name not in ("input", "tensors")}
        return self.function(data, *self.settings, **keywords)

    def inputs(self) -> list[Tensor]:
        return list(tensors_in([self.args, self.kwargs]))


class Size(int):
    """The length of an activation's axis, as the code reads it from `x.shape`; arithmetic gives plain numbers."""

    labels: Tensor
    axis: int

    @classmethod
    def of(cls, size: int, labels: Tensor, axis: int) -> "Size":
        self = cls(size)
        self.labels, self.axis = labels, axis
        return self


class Trace(Protocol):
    """What a rule sees of the pass."""

    labels: Labels

    def of(self, tensor: Tensor) -> Tensor:
        """Labels of an activation; FIXED for what no channel reaches."""

    def bind(self, parameter: Tensor | None, axis: int, labels: Tensor) -> None:
        """The positions of a parameter's axis are these channels."""

    def produce(self, weight: Tensor, labels: Tensor) -> None:
        """The rows of the weight make these channels."""

    def is_state(self, tensor: Tensor) -> bool:
        """Whether it is a parameter or buffer of the model."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
