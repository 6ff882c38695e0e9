"""The same personal model through torch: the reference that the torch-free export must agree with, and eager latency.

Only ever imported where torch is wanted; `python -m edge_agent.torch_export` keeps it out of a process that infers.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from edge_agent.child import answer
from edge_agent.latency import measure
from edge_agent.slots import MODEL, PERSONAL
from shared.channel_trace import channel_layout
from shared.codec import open_payload
from shared.errors import ConfigError, ExportError, ModelError
from shared.model_state import load_tensors
from shared.models import build_model, example_input
from shared.onnx_file import ModelCard, parse, properties
from shared.onnx_torch import to_onnx
from shared.pruning import shrink


def reference_onnx(model: nn.Module, example: Tensor, metadata: Mapping[str, str]) -> bytes:
    """The model through the ordinary torch.onnx.export, optimized: seconds instead of milliseconds, and other names.

    example   float32 (batch, ...): only its shape matters
    metadata  properties of a shared.onnx_file.ModelCard

    ModelError if it is in training mode or cannot be exported.
    """
    exported = to_onnx(model, example, optimize=True)
    onnx.helper.set_model_props(exported, ModelCard.from_properties(metadata).properties())
    data: bytes = exported.SerializeToString()
    try:
        onnx.checker.check_model(parse(data), full_check=True)
    except (ExportError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{type(model).__name__} makes no ONNX file: {error}") from error
    return data


def export(version: str, out: str, *trust: str) -> int:
    """Write the personal model of that folder (edge_agent.slots) to `out` through torch; its size in bytes."""
    _, personal, example = _networks(Path(version), trust)
    return Path(out).write_bytes(reference_onnx(personal, example, _card(Path(version)).properties()))


def latency(version: str, threads: str, *trust: str) -> dict[str, dict[str, float]]:
    """Latency of the personal and the dense network in eager torch, one example at a time."""
    torch.set_num_threads(int(threads))
    dense, personal, example = _networks(Path(version), trust)
    one = example[:1]
    with torch.inference_mode():
        found = measure({"personal": lambda: personal(one), "dense": lambda: dense(one)})
    return {name: each.json() for name, each in found.items()}


def _card(version: Path) -> ModelCard:
    return ModelCard.from_properties(properties(parse((version / MODEL).read_bytes())))


def _networks(version: Path, trust: tuple[str, ...]) -> tuple[nn.Module, nn.Module, Tensor]:
    """The dense architecture, the personal network, and an example. `trust` names what may be imported for it."""
    card = _card(version)
    if not card.model:
        raise ExportError(f"{version / MODEL} does not say which model it is: only the template can export it")
    if ":" in card.model and card.model not in trust:
        raise ConfigError(f"the model {card.model!r} would be imported, which `trust` does not list")
    dense = build_model(card.model, card.model_options, seed=0).eval()
    example = example_input(card.model, card.model_options)
    with open_payload(version / PERSONAL, limit=(version / PERSONAL).stat().st_size) as payload:
        held = payload.subnet.held
        personal = dense if held is None else shrink(dense, channel_layout(dense, example), held)
        load_tensors(personal, payload.subnet.tensors)
    return dense, personal.eval(), example


if __name__ == "__main__":
    answer(lambda action, *arguments: {"export": export, "latency": latency}[action](*arguments))
