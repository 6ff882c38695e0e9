"""What a plan means on this device: algorithm, model and data, ready to work with."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from edge_agent.data import DeviceData, Examples
from edge_agent.job import Job
from shared.algorithms import algorithm, hyperparameters
from shared.algorithms.device import Setup, set_up
from shared.codec import open_payload
from shared.config_data import DataSettings
from shared.errors import ConfigError, DataError, ModelError
from shared.messages import Plan
from shared.model_state import load_state
from shared.models import build_model, example_input
from shared.training import evaluation_batch

Read: TypeAlias = Callable[[DataSettings], DeviceData]


@dataclass(frozen=True)
class Work:
    """setup: of the plan's algorithm on its model; example: a batch of inputs of the shape that the model takes."""

    setup: Setup
    example: torch.Tensor
    data: DeviceData


@dataclass(frozen=True)
class _Ground:
    """What decides a setup, whichever device it is for. digest: of the file `initial`, where there is one."""

    plan: Plan = field(hash=False)
    batch_size: int
    digest: str | None
    initial: Path | None = field(compare=False)


def prepare(job: Job, read: Read) -> Work:
    """ConfigError for a plan that cannot be followed or is not trusted, ModelError for a model that is not the
    coordinator's, MalformedPayload for an initial state that is not this model's, DataError where data and model do not
    fit."""
    task, plan = job.task, job.task.plan
    for name in (plan.model, plan.algorithm):
        if ":" in name and name not in job.trust:
            raise ConfigError(f"this device was asked to import {name!r}, which its `trust` setting does not list")
    digest = task.initial.digest if task.initial else None
    setup, example = _set_up(_Ground(plan, job.profile.training.batch_size, digest, job.initial))
    data = read(job.data)
    outputs = len(logits(setup.model, example)[0])
    if data.shape != tuple(example.shape[1:]) or len(data.classes) > outputs:
        raise DataError(
            f"this device's data has inputs of shape {data.shape} and {len(data.classes)} classes, {plan.model} takes "
            f"{tuple(example.shape[1:])} and tells {outputs} apart: change the device's [data] or the run's [model]"
        )
    return Work(setup, example, data)


def rehearsal(work: Work, batches: int) -> Work:
    """The same with so few examples and epochs that it is done at once, and takes the memory that the whole would."""
    setup, data = work.setup, work.data
    evaluated = evaluation_batch(work.example)

    def few(part: Examples, size: int) -> Examples:
        return Examples(part.inputs[:size], part.labels[:size])

    data = replace(
        data,
        train=few(data.train, batches * setup.hp.batch_size),
        validation=few(data.validation, evaluated),
        test=few(data.test, evaluated),
    )
    epochs = {name: min(getattr(setup.hp, name), 1) for name in ("epochs", "finetune_epochs")}
    return replace(work, setup=replace(setup, hp=setup.hp.model_copy(update=epochs)), data=data)


@lru_cache(maxsize=2)  # where one process works for many devices (simulations), of which few differ in batch_size
def _set_up(ground: _Ground) -> tuple[Setup, torch.Tensor]:
    """The plan's algorithm on its model, and an example of the model's inputs."""
    plan = ground.plan
    chosen = algorithm(plan.algorithm)
    hp = hyperparameters(chosen, plan.hyperparameters)
    hp = hp.model_copy(update={"batch_size": min(hp.batch_size, ground.batch_size)})
    example = example_input(plan.model, plan.model_options)
    model = build_model(plan.model, plan.model_options, seed=plan.seed)
    if ground.initial is not None:
        with open_payload(ground.initial, limit=ground.initial.stat().st_size) as payload:
            load_state(model, payload.subnet)
    setup = set_up(chosen, hp, model, example)
    if (setup.layout and setup.layout.digest) != plan.layout:
        raise ModelError(
            f"{plan.model} has another channel layout here than at the coordinator: "
            "run the same version of Talaria and of the model on both sides"
        )
    return setup, example


@torch.inference_mode()
def logits(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """In eval mode; the model is left in the mode it was in."""
    training = model.training
    outputs: torch.Tensor = model.eval()(inputs)
    model.train(training)
    return outputs
