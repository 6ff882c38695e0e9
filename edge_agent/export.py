"""The device's own model as an ONNX file, made without torch, and put in service once it has proved itself."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from edge_agent import slots
from edge_agent.acceptance import accept
from edge_agent.int8 import prefer_int8
from shared.codec import open_payload
from shared.errors import ExportError
from shared.onnx_file import MAX_BYTES, fill
from shared.profiles import Profile


def export_personal(
    template: Path, personal: Path, reference: Path, models: Path, profile: Profile, metadata: Mapping[str, str]
) -> dict[str, float]:
    """Make the personal model from the coordinator's template, check it, and put it in service below `models`.

    template   dense ONNX template, as it came off the wire
    personal   payload with this device's tensors, cut down to the channels it holds
    reference  npz with `inputs` (float32, normalized) and `labels` (int64) of the device's validation split, and the
               `logits` (float32) that the trainer's own model has for them: the float32 file's may differ by 1e-4
    profile    where it wants int8, that goes into service if it is as good (edge_agent.int8)
    metadata   properties of a shared.onnx_file.ModelCard

    Metrics of the file in service: onnx_bytes, latency_ms, latency_ms_p95 (batch 1), beside onnx_bytes_dense and
    latency_ms_dense of the template. `parity` of the float32 file. Those of edge_agent.int8, where that is wanted.
    ExportError if anything is wrong with it: then the model in service stays in service.
    """
    size = template.stat().st_size
    if size > MAX_BYTES:
        raise ExportError(f"template of {size} bytes is larger than the {MAX_BYTES} allowed here")
    version = slots.prepare(models)
    try:
        with open_payload(personal, limit=personal.stat().st_size) as payload:
            (version / slots.MODEL).write_bytes(fill(template.read_bytes(), payload.subnet.tensors, metadata))
        _keep(template, version / slots.TEMPLATE)
        _keep(personal, version / slots.PERSONAL)
        _keep(reference, version / slots.REFERENCE)
        metrics = accept(version, profile)
        if profile.inference.dtype == "int8":
            metrics |= prefer_int8(version, profile)
    except BaseException:
        shutil.rmtree(version)
        raise
    slots.commit(models)
    return metrics


def _keep(source: Path, target: Path) -> None:
    """The same file under a second name, where the file system can; flash wears."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
