"""Is an exported model fit for service? Asked in a process of its own, before it is switched on.

What comes off the wire is run here for the first time. If that takes the runtime down, or the runtime's build does not
suit this processor, it takes down a child, and the agent and the model in service go on.
"""

from pathlib import Path

import numpy as np
import onnx

from edge_agent.child import answer, ask
from edge_agent.inference import Network, latencies
from edge_agent.slots import MODEL, REFERENCE, TEMPLATE
from shared.errors import ExportError
from shared.onnx_runtime import optimize
from shared.profiles import Profile

TOLERANCE = 1e-4
"""Largest difference of the file's logits from the trainer's, relative to the largest logit where that is above 1."""


def accept(version: Path, profile: Profile) -> dict[str, float]:
    """Metrics of the version in that folder (edge_agent.slots); ExportError if it is refused.

    Its model.onnx, the filled template, is replaced by what the runtime's optimizer makes of it, and this is what is
    proved: it differs from the trainer's logits by at most 1e-4.
    """
    try:
        metrics: dict[str, float] = ask("edge_agent.acceptance", str(version), profile.model_dump_json())
    except ExportError as error:
        raise ExportError(f"the new model was refused: {error}") from error
    return metrics


def examine(version: Path, profile: Profile) -> dict[str, float]:
    """The same, in this process."""
    model, template = version / MODEL, version / TEMPLATE
    _check(model)
    model.write_bytes(optimize(model.read_bytes()))
    _check(model)
    network, dense = Network(model, profile), Network(template, profile)
    latency = latencies({"personal": network, "dense": dense})
    return {
        "parity": _parity(network, version / REFERENCE),
        "onnx_bytes": float(model.stat().st_size),
        "onnx_bytes_dense": float(template.stat().st_size),
        "latency_ms": latency["personal"].p50,
        "latency_ms_p95": latency["personal"].p95,
        "latency_ms_dense": latency["dense"].p50,
    }


def _check(model: Path) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker: {' '.join(str(error).split())}") from error


def _parity(network: Network, reference: Path) -> float:
    with np.load(reference, allow_pickle=False) as arrays:
        inputs, expected = arrays["inputs"], arrays["logits"]
    logits = network.run(inputs)
    if logits.shape != expected.shape:
        raise ExportError(f"logits of shape {logits.shape}, where the trainer's have {expected.shape}")
    if not np.isfinite(logits).all():
        raise ExportError("logits that are not finite, for the device's own validation data")
    parity = float(np.abs(logits - expected).max() / max(1.0, np.abs(expected).max()))
    if not parity <= TOLERANCE:
        raise ExportError(f"logits differ from the trainer's by {parity:.1e}, more than {TOLERANCE}")
    return parity


if __name__ == "__main__":
    answer(lambda version, profile: examine(Path(version), Profile.model_validate_json(profile)))
