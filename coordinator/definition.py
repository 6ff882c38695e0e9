"""What a run is about, built from its settings: what devices are told, and the channels that updates may lack."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from shared.algorithms import algorithm, hyperparameters, shared_names
from shared.channel_trace import channel_layout, verify_layout
from shared.channels import ChannelLayout
from shared.codec import open_payload
from shared.config import RunConfig
from shared.encoding import Encoding
from shared.errors import ConfigError, MalformedPayload, StateError
from shared.messages import Plan
from shared.model_state import load_state, state_tensors
from shared.models import build_model, example_input
from shared.tensors import Tensors


@dataclass(frozen=True)
class Definition:
    """
    layout      None unless the algorithm prunes
    statistics  shared float tensors that are no parameters, like BatchNorm's mean and variance
    """

    plan: Plan
    layout: ChannelLayout | None
    statistics: tuple[str, ...] = ()

    def dump(self) -> bytes:
        layout = self.layout and {
            "groups": self.layout.groups,
            "axes": {
                name: [None if units is None else units.tolist() for units in axes]
                for name, axes in self.layout.axes.items()
            },
        }
        plan = self.plan.model_dump(mode="json")
        return json.dumps({"plan": plan, "layout": layout, "statistics": self.statistics}).encode()

    @classmethod
    def load(cls, data: bytes) -> "Definition":
        """The definition that `dump` wrote; StateError if it was changed since."""
        fields = json.loads(data)
        plan, layout = Plan.model_validate_json(json.dumps(fields["plan"])), None
        if fields["layout"] is not None:
            axes = {
                name: tuple(None if units is None else np.array(units, np.int64) for units in axes)
                for name, axes in fields["layout"]["axes"].items()
            }
            layout = ChannelLayout(fields["layout"]["groups"], axes)
        if (layout and layout.digest) != plan.layout:
            raise StateError("the channel layout is not the one that the run began with")
        return cls(plan, layout, tuple(fields["statistics"]))


def model_of(config: RunConfig) -> nn.Module:
    """The run's model as every device builds it, with the tensors that the seed draws."""
    return build_model(config.model.name, config.model.options, seed=config.run.seed)


def define(config: RunConfig) -> tuple[Definition, Tensors, Tensors]:
    """The definition, the whole state of the initial model, and of it what is shared: what the first round starts from.

    ConfigError or ModelError where the settings make no run.
    """
    chosen = algorithm(config.algorithm.name)
    settings = hyperparameters(chosen, config.algorithm.hyperparameters)
    if config.rounds.mode == "buffered" and chosen.synchronous:
        raise ConfigError(f'rounds.mode = "buffered" is not possible with {chosen.name}: {chosen.synchronous}')
    model = model_of(config)
    if config.model.initial is not None:
        _start_from(config.model.initial, model)
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
        encodings=tuple(Encoding) if config.transfer.encoding == "link" else (config.transfer.encoding,),
        evaluate_every=config.rounds.evaluate_every,
    )
    state = state_tensors(model)
    shared = {name: state[name] for name in sorted(shared_names(chosen, model, settings))}
    buffers = {name for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    return Definition(plan, layout, tuple(name for name in shared if name in buffers)), state, shared


def _start_from(path: Path, model: nn.Module) -> None:
    """Load the file that `model.initial` names."""
    try:
        with open_payload(path, limit=path.stat().st_size) as payload:
            load_state(model, payload.subnet)
    except (OSError, MalformedPayload) as error:
        raise ConfigError(
            f'model.initial = "{path}": {error}. It must hold every tensor of the run\'s model, as '
            "`talaria-coordinator export RUN_DIR --format payload` writes them for a run of the same [model]"
        ) from error
