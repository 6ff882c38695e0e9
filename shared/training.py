"""The one SGD loop, and evaluation. Written for small devices: no DataLoader, no torch.optim.

torch.optim is left alone on purpose: its first optimizer imports the whole of torch's compiler (2 s and 60 MB that a
trainer would pay in every round), and its step costs three times as much as the fused update below, which computes the
same numbers bit for bit.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from shared.errors import TrainingError


@dataclass(frozen=True)
class Split:
    """Labelled examples. inputs: float32, N x (shape of one example); labels: int64, N."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in an order drawn from the generator; the last batch may be smaller."""
        for chosen in torch.split(torch.randperm(len(self), generator=generator), size):
            yield self.inputs[chosen], self.labels[chosen]


@dataclass(frozen=True)
class Evaluation:
    """accuracy: share of the examples whose largest output is their label; loss: mean cross entropy."""

    accuracy: float
    loss: float
    examples: int


def sgd(
    model: nn.Module,
    split: Split,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    generator: torch.Generator,
    check_time: Callable[[], None],
    only: Collection[str] | None = None,
    before_step: Callable[[], None] | None = None,
) -> None:
    """`epochs` epochs of SGD on the cross entropy, in place. Momentum starts at zero and ends with the call.

    only         names of the state that may move; everything else stays bit-identical, BatchNorm statistics included.
                 Where they name no parameter, nothing is done and nothing drawn
    check_time   called before each batch; what it raises ends the training
    before_step  called between backward and step: may change the gradients, for example to add a proximal term
    A batch of one is skipped where BatchNorm trains: it has no variance. TrainingError when the loss is not finite.
    """
    with moving(model, only) as parameters:
        if not parameters:
            return
        velocity: dict[nn.Parameter, Tensor] = {}
        for inputs, labels in batches(
            model, split, epochs=epochs, batch_size=batch_size, generator=generator, check_time=check_time
        ):
            _loss(model, inputs, labels).backward()  # type: ignore[no-untyped-call]
            if before_step is not None:
                before_step()
            _step(parameters, velocity, lr, momentum, weight_decay)


def batches(
    model: nn.Module,
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    check_time: Callable[[], None],
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `epochs` epochs for a model in train mode, each in an order drawn from the generator.

    check_time   called before each batch; what it raises ends the iteration
    A batch of one is skipped where BatchNorm trains. TrainingError where there are no examples.
    """
    if epochs and not len(split):
        raise TrainingError("no training examples: give this device's [data] at least one")
    normalizes = any(isinstance(module, _BatchNorm) and module.training for module in model.modules())
    for _ in range(epochs):
        for inputs, labels in split.batches(batch_size, generator):
            check_time()
            if len(labels) > 1 or not normalizes:
                yield inputs, labels


def gradients(
    model: nn.Module, parameters: Sequence[nn.Parameter], inputs: Tensor, labels: Tensor
) -> tuple[Tensor, ...]:
    """Gradient of the mean cross entropy of a batch with respect to each of the parameters, at the values they have
    now; zero for a parameter that the loss does not depend on. Leaves nothing in `.grad`.

    inputs, labels  a batch, as in Split. TrainingError when the loss is not finite.
    """
    found = torch.autograd.grad(_loss(model, inputs, labels), parameters, allow_unused=True)
    return tuple(
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, found, strict=True)
    )


def _loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    loss = cross_entropy(model(inputs.contiguous(memory_format=_memory_format(inputs))), labels)
    if not math.isfinite(loss.item()):
        raise TrainingError(
            f"the loss is {loss.item()} in training: lower lr, or look for extreme values in this device's data"
        )
    return loss


def _memory_format(inputs: Tensor) -> torch.memory_format:
    """Images go through with their channels last: pooling takes a quarter of the time, large convolutions half."""
    return torch.channels_last if inputs.dim() == 4 else torch.contiguous_format


@torch.no_grad()
def _step(
    parameters: list[nn.Parameter],
    velocity: dict[nn.Parameter, Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One step of torch.optim.SGD on all parameters that have a gradient; leaves them without one."""
    moved: list[Tensor] = []
    gradients: list[Tensor] = []
    for parameter in parameters:
        if (gradient := parameter.grad) is None:
            continue
        if weight_decay:
            gradient.add_(parameter, alpha=weight_decay)
        if momentum:
            gradient = velocity[parameter].mul_(momentum).add_(gradient) if parameter in velocity else gradient
            velocity[parameter] = gradient
        moved.append(parameter)
        gradients.append(gradient)
        parameter.grad = None
    if moved:
        torch._foreach_add_(moved, gradients, alpha=-lr)


@contextmanager
def moving(model: nn.Module, only: Collection[str] | None = None) -> Iterator[list[nn.Parameter]]:
    """Train mode with everything outside `only` (state names; None: everything moves) frozen; yields what moves.

    Flags and modes are restored afterwards. Frozen is no gradient at all: with a gradient of zero, weight decay and
    momentum would still move a parameter. A frozen BatchNorm is in eval mode, or its statistics would drift.
    """
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    with _at_work(model):
        try:
            model.train()
            for name, parameter in model.named_parameters():
                parameter.grad = None
                parameter.requires_grad_(flags[parameter] and (only is None or name in only))
            for prefix, module in model.named_modules():
                if only is not None and isinstance(module, _BatchNorm):
                    module.train(any(f"{prefix}.{name}".lstrip(".") in only for name in module.state_dict()))
            yield [parameter for parameter in model.parameters() if parameter.requires_grad]
        finally:
            for parameter, flag in flags.items():
                parameter.grad = None
                parameter.requires_grad_(flag)


def evaluation_batch(inputs: Tensor) -> int:
    """How many of these examples are evaluated at once: fewer of large ones, whose activations take the memory that a
    small device has for its training; more of small ones, which otherwise wait for Python."""
    return max(16, min(256, 2**19 // max(1, inputs[:1].nbytes)))


def evaluate(model: nn.Module, split: Split) -> Evaluation:
    """Accuracy and loss in eval mode; the model is left as it was. TrainingError when there is nothing to evaluate
    on or the loss is not finite."""
    if not len(split):
        raise TrainingError("no examples to evaluate on: raise data.test and data.validation, or give more data")
    correct, loss, batch_size = 0, 0.0, evaluation_batch(split.inputs)
    with _at_work(model), torch.inference_mode():
        model.eval()
        for inputs, labels in zip(
            *(torch.split(part, batch_size) for part in (split.inputs, split.labels)), strict=True
        ):
            outputs = model(inputs.contiguous(memory_format=_memory_format(inputs)))
            correct += int((outputs.argmax(1) == labels).sum())
            loss += cross_entropy(outputs, labels, reduction="sum").item()
    if not math.isfinite(loss):
        raise TrainingError(f"the loss on {len(split)} examples is {loss}: the model has diverged, lower lr")
    return Evaluation(accuracy=correct / len(split), loss=loss / len(split), examples=len(split))


@contextmanager
def _at_work(model: nn.Module) -> Iterator[None]:
    """Weights with their channels last, as the inputs come; afterwards contiguous again, and the modes as they were."""
    modes = {module: module.training for module in model.modules()}
    try:
        _reformat(model, torch.channels_last)
        yield
    finally:
        _reformat(model, torch.contiguous_format)
        for module, mode in modes.items():
            module.training = mode


def _reformat(model: nn.Module, memory_format: torch.memory_format) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
