"""The one door to ONNX Runtime, which is told to keep to itself before it is imported.

Its official builds switch telemetry on by default: a database in the user's cache and a thread. Its own API to switch
that off comes too late; only this variable, set before the import, prevents it.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnx
import onnxruntime as onnxruntime

from shared.errors import ExportError
from shared.onnx_file import properties, tidy

_ERROR = 3


def open_session(
    model: bytes | Path,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 1,
    arena: bool = True,
) -> onnxruntime.InferenceSession:
    """A session on a checked file. ExportError if the runtime cannot load it.

    providers  wanted execution providers, best first: those that this build has are used, the CPU after all of them
    threads    of one inference; they sleep while they wait, because other programs need the cores
    arena      keep memory between inferences for speed; without it, it goes back to the system
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = _ERROR
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=available(providers)
        )
    except Exception as error:  # the runtime's errors share no base class but this
        raise ExportError(f"ONNX Runtime cannot load the model: {error}") from error


def optimize(data: bytes) -> bytes:
    """A file of ours as the runtime's own optimizer leaves it at its basic level: the same network in standard
    operators only, constants folded, BatchNorm inside the convolution before it. ExportError if the runtime cannot load
    it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = _ERROR
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        try:
            onnxruntime.InferenceSession(data, options, providers=available([]))
        except Exception as error:  # as above
            raise ExportError(f"ONNX Runtime cannot load the model: {error}") from error
        model = onnx.load(options.optimized_model_filepath)
    tidy(model, properties(model))
    optimized: bytes = model.SerializeToString()
    return optimized


def available(wanted: Sequence[str]) -> list[str]:
    """The wanted providers that this build of the runtime has, in order, the CPU last."""
    here: list[Any] = onnxruntime.get_available_providers()
    return [name for name in wanted if name in here and name != "CPUExecutionProvider"] + ["CPUExecutionProvider"]
