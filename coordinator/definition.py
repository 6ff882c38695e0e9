"""What a run is about, built from its settings: model, algorithm, channel layout, and the tensors that travel."""

from dataclasses import dataclass

from torch import nn

from shared.algorithms import Algorithm, Hyperparameters, algorithm, hyperparameters, shared_names
from shared.channel_trace import channel_layout, verify_layout
from shared.channels import ChannelLayout
from shared.config import RunConfig
from shared.messages import Plan
from shared.model_state import state_tensors
from shared.models import build_model, example_input
from shared.tensors import Tensors


@dataclass(frozen=True)
class Definition:
    """plan: what devices are told; layout: None unless the algorithm prunes; initial: dense shared tensors."""

    plan: Plan
    algorithm: Algorithm
    hyperparameters: Hyperparameters
    layout: ChannelLayout | None
    initial: Tensors


def model_of(config: RunConfig) -> nn.Module:
    """The run's model as every device builds it."""
    return build_model(config.model.name, config.model.options, seed=config.run.seed)


def define(config: RunConfig) -> Definition:
    """ConfigError or ModelError where the settings make no run."""
    chosen = algorithm(config.algorithm.name)
    settings = hyperparameters(chosen, config.algorithm.hyperparameters)
    model = model_of(config)
    layout = None
    if chosen.prunes:
        example = example_input(config.model.name, config.model.options)
        layout = channel_layout(model, example)
        verify_layout(model, layout, example)
    values = settings.model_dump(mode="json")
    plan = Plan(
        model=config.model.name,
        model_options=dict(config.model.options),
        algorithm=config.algorithm.name,
        hyperparameters={key: tuple(value) if isinstance(value, list) else value for key, value in values.items()},
        seed=config.run.seed,
        layout=layout.digest if layout else None,
    )
    return Definition(
        plan, chosen, settings, layout, state_tensors(model, sorted(shared_names(chosen, model, settings)))
    )
