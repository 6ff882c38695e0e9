"""Runs an exported model: raw examples in, classes out. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.latency import Latency, measure
from shared.errors import DataError, ExportError
from shared.onnx_file import INPUT, MAX_BYTES, OUTPUT, ModelCard, parse, properties
from shared.onnx_runtime import open_session
from shared.profiles import Profile
from shared.tensors import Array

BATCH = 64
"""Examples that are run at once: what bounds the memory of a large request."""
SMALL_MIB = 512
"""Devices with less memory than this, or just as much, give it back after each inference."""


@dataclass(frozen=True)
class Predictions:
    """For n examples: logits and probabilities, float32 (n, classes), the best class of each, and its label."""

    logits: Array
    probabilities: Array
    classes: tuple[int, ...]
    labels: tuple[str, ...]


class Network:
    """One ONNX file, loaded as the device's profile wants it.

    card   what the file says about itself
    shape  of one example, without the batch
    """

    def __init__(self, path: Path, profile: Profile, *, threads: int | None = None) -> None:
        """ExportError if the file is missing, is not one of ours, or cannot be loaded."""
        if not path.is_file():
            raise ExportError(f"{path} is not a file: name an exported model")
        if path.stat().st_size > MAX_BYTES:
            raise ExportError(f"{path} is larger than the {MAX_BYTES} bytes allowed here")
        data = path.read_bytes()
        model = parse(data)
        self.card = ModelCard.from_properties(properties(model))
        dims = model.graph.input[0].type.tensor_type.shape.dim
        self.shape = tuple(entry.dim_value for entry in dims)[1:]
        if not self.shape or min(self.shape) < 1:
            raise ExportError(f"{path}: the shape of an example is {self.shape}; only the batch may be open")
        for name in ("mean", "std"):
            if len(getattr(self.card, name)) not in (1, self.shape[0]):
                raise ExportError(f"{path}: {name} needs one value, or one for each of the {self.shape[0]} channels")
        self._session: Any = open_session(
            data,
            providers=profile.inference.providers,
            threads=threads or profile.inference.threads,
            arena=profile.memory_mib > SMALL_MIB,
        )

    @property
    def providers(self) -> list[str]:
        """The execution providers in use, best first."""
        return list(self._session.get_providers())

    def run(self, inputs: Array) -> Array:
        """Logits, float32 (n, classes), of normalized inputs (n, *shape); DataError where they do not fit."""
        self._check(inputs)
        inputs = np.ascontiguousarray(inputs, dtype=np.float32)
        batches = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
        return np.concatenate([self._session.run([OUTPUT], {INPUT: batch})[0] for batch in batches])

    def normalize(self, raw: Array) -> Array:
        """(raw - mean) / std of the model's card, per channel (axis 1): float32 (n, *shape); DataError as `run`."""
        self._check(raw)
        mean, std = (np.asarray(values, dtype=np.float32) for values in (self.card.mean, self.card.std))
        axis = (-1, *(1,) * (len(self.shape) - 1))
        result: Array = ((raw - mean.reshape(axis)) / std.reshape(axis)).astype(np.float32)
        return result

    def _check(self, examples: Array) -> None:
        if examples.shape[1:] != self.shape or not len(examples):
            raise DataError(
                f"{len(examples)} examples of shape {examples.shape[1:]} do not fit the model, which takes {self.shape}"
            )

    def predict(self, raw: Array) -> Predictions:
        """Predictions for raw examples (n, *shape), as the device's data source yields them (images: 0 to 255)."""
        logits = self.run(self.normalize(raw))
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        classes = tuple(int(best) for best in logits.argmax(axis=1))
        names = self.card.labels
        return Predictions(
            logits=logits,
            probabilities=exponents / exponents.sum(axis=1, keepdims=True),
            classes=classes,
            labels=tuple(names[best] if best < len(names) else str(best) for best in classes),
        )


def latencies(networks: Mapping[str, Network], *, seconds: float = 0.5) -> dict[str, Latency]:
    """Latency of each network for one example at a time, side by side."""
    inputs = {name: np.zeros((1, *network.shape), np.float32) for name, network in networks.items()}
    return measure(
        {name: lambda name=name: networks[name].run(inputs[name]) for name in networks},  # type: ignore[misc]
        seconds=seconds,
    )
