"""The dense ONNX template of a run: exported once here, filled on every device without torch."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from shared.errors import ExportError, ModelError
from shared.onnx_file import COUNTER, INPUT, OUTPUT, ModelCard, fill, parse, state_names
from shared.onnx_runtime import open_session
from shared.onnx_torch import constant, to_onnx
from shared.tensors import Tensors

TOLERANCE = 1e-4
"""Largest difference between the template and torch, relative to the largest logit where that is above 1."""


def dense_template(model: nn.Module, example: Tensor, metadata: Mapping[str, str]) -> bytes:
    """The ONNX template of the model: every tensor of its state an initializer under its own name, the batch dynamic,
    the rest Constant nodes. Checked by onnx and against torch, on batches of 1 and 5.

    example   float32 (batch, ...): only its shape matters
    metadata  properties of a shared.onnx_file.ModelCard

    ModelError if the model is in training mode or cannot be exported, if it uses an operator that devices refuse, or if
    a tensor of its state would be lost on the way.
    """
    template = to_onnx(model, example, optimize=False)
    _only_state_initializers(template, model)
    try:
        onnx.helper.set_model_props(template, ModelCard.from_properties(metadata).properties())
        data: bytes = template.SerializeToString()
        onnx.checker.check_model(parse(data), full_check=True)
        _check_parity(data, model, example)
    except (ExportError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{type(model).__name__} makes no ONNX template: {error}") from error
    return data


def export_global(template: bytes, tensors: Tensors, metadata: Mapping[str, str], path: Path) -> int:
    """Write the global model to `path`, without torch, and return its size in bytes. ExportError if they do not fit."""
    data = fill(template, tensors, metadata)
    path.write_bytes(data)
    return len(data)


def _only_state_initializers(template: ModelProto, model: nn.Module) -> None:
    """Turn initializers that are not part of the state into Constant nodes; ModelError if a part of it is missing."""
    graph = template.graph
    wanted = {name for name in model.state_dict() if name.rpartition(".")[2] != COUNTER}
    others = [tensor for tensor in graph.initializer if tensor.name not in wanted]
    for tensor in others:
        graph.node.insert(0, constant(tensor.name, numpy_helper.to_array(tensor)))
        graph.initializer.remove(tensor)
    if missing := sorted(wanted - set(state_names(template))):
        raise ModelError(
            f"{type(model).__name__}: {', '.join(missing)} would be lost in ONNX; the forward pass must use every "
            "tensor of the state, each under one name"
        )


def _check_parity(data: bytes, model: nn.Module, example: Tensor) -> None:
    session = open_session(data)
    generator = torch.Generator().manual_seed(0)
    for size in (1, 5):
        inputs = torch.randn(size, *example.shape[1:], generator=generator)
        with torch.no_grad():
            expected = model(inputs).numpy()
        (actual,) = session.run([OUTPUT], {INPUT: inputs.numpy()})
        difference = float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{type(model).__name__}: ONNX and torch differ by {difference:.1e} on a batch of {size}, "
                f"more than {TOLERANCE}"
            )
