"""The one SGD loop, and evaluation. Written for small devices: no DataLoader, no torch.optim.

torch.optim is left alone on purpose: its first optimizer imports the whole of torch's compiler (2 s and 60 MB that a
trainer would pay in every round), and its step costs three times as much as the fused update below, which computes the
same numbers bit for bit.
"""

import math
from collections.abc import Callable, Collection, Iterator
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

    only         names of the state that may move; everything else stays bit-identical, BatchNorm statistics included
    check_time   called before each batch; what it raises ends the training
    before_step  called between backward and step: may change the gradients, for example to add a proximal term
    A batch of one is skipped where BatchNorm trains: it has no variance. TrainingError when the loss is not finite.
    """
    if epochs and not len(split):
        raise TrainingError("no training examples: give this device's [data] at least one")
    with _moving(model, only) as parameters:
        normalizes = any(isinstance(module, _BatchNorm) and module.training for module in model.modules())
        velocity: dict[nn.Parameter, Tensor] = {}
        for epoch in range(1, epochs + 1):
            for step, (inputs, labels) in enumerate(split.batches(batch_size, generator), start=1):
                check_time()
                if normalizes and len(labels) == 1:
                    continue
                loss = cross_entropy(model(inputs), labels)
                if not math.isfinite(loss.item()):
                    raise TrainingError(
                        f"loss is {loss.item()} in epoch {epoch}, step {step} at learning rate {lr}: "
                        "lower lr, or look for extreme values in this device's data"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                if before_step is not None:
                    before_step()
                _step(parameters, velocity, lr, momentum, weight_decay)


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
def _moving(model: nn.Module, only: Collection[str] | None) -> Iterator[list[nn.Parameter]]:
    """Train mode with everything outside `only` frozen; yields what moves. Flags and modes are restored afterwards.

    Frozen is no gradient at all: with a gradient of zero, weight decay and momentum would still move a parameter.
    A frozen BatchNorm is in eval mode, or its statistics would drift.
    """
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
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
        for module, mode in modes.items():
            module.training = mode


@torch.inference_mode()
def evaluate(model: nn.Module, split: Split, batch_size: int = 256) -> Evaluation:
    """Accuracy and loss in eval mode; the model is left as it was. TrainingError when there is nothing to evaluate
    on or the loss is not finite."""
    if not len(split):
        raise TrainingError("no examples to evaluate on: raise data.test and data.validation, or give more data")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    correct, loss = 0, 0.0
    try:
        for inputs, labels in zip(
            *(torch.split(part, batch_size) for part in (split.inputs, split.labels)), strict=True
        ):
            outputs = model(inputs)
            correct += int((outputs.argmax(1) == labels).sum())
            loss += cross_entropy(outputs, labels, reduction="sum").item()
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not math.isfinite(loss):
        raise TrainingError(f"the loss on {len(split)} examples is {loss}: the model has diverged, lower lr")
    return Evaluation(accuracy=correct / len(split), loss=loss / len(split), examples=len(split))
