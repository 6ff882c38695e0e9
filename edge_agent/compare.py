"""What shrinking and int8 are worth on this very device: the dense network, the shrunk one and its int8 variant, side
by side. No torch."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.inference import Network, latencies
from edge_agent.int8 import judge
from edge_agent.latency import Latency
from edge_agent.quantization import quantize
from edge_agent.slots import MODEL, PERSONAL, REFERENCE, TEMPLATE
from shared.codec import open_payload
from shared.errors import ExportError
from shared.onnx_file import fill, parse, properties
from shared.onnx_runtime import optimize
from shared.profiles import Profile


@dataclass(frozen=True)
class Row:
    """One network on this device.

    accuracy          on the validation split; None for the dense one: its file holds the weights of the run's start
    agreement         share of the validation split to which int8 gives the class that the shrunk one gives
    bytes             of the file
    parameters, macs  as the trainer counted them; None where it did not
    latency           of one example, in turns with the others
    faster, smaller   median latency and bytes of the dense one, over its own
    """

    accuracy: float | None
    agreement: float | None
    bytes: int
    parameters: float | None
    macs: float | None
    latency: Latency
    faster: float
    smaller: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds.

    rows        `dense`, `shrunk` and, where it can be made, `int8`
    in_service  which of them the device runs
    examples    of the validation split that tell accuracy and agreement
    refusal     why int8 would not be put in service by these measurements; None: it would
    """

    rows: Mapping[str, Row]
    in_service: str
    examples: int
    refusal: str | None


def compare(version: Path, profile: Profile, *, seconds: float = 2.0) -> Comparison:
    """Of the version in that folder (edge_agent.slots), with about `seconds` of measuring. The int8 variant is the file
    in service, or else made for the occasion. ExportError if a file is not one of ours."""
    served = parse((version / MODEL).read_bytes())
    in_service = "int8" if any(node.op_type == "QuantizeLinear" for node in served.graph.node) else "shrunk"
    with np.load(version / REFERENCE, allow_pickle=False) as arrays:
        inputs, labels = arrays["inputs"], arrays["labels"]
    with open_payload(version / PERSONAL, limit=(version / PERSONAL).stat().st_size) as payload:
        counted = payload.header.metrics
        template = (version / TEMPLATE).read_bytes()
        float32 = optimize(fill(template, payload.subnet.tensors, properties(served)))
    unmade = None
    with tempfile.TemporaryDirectory() as folder:
        files = {"dense": version / TEMPLATE, "shrunk": Path(folder) / "float32.onnx"}
        files["shrunk"].write_bytes(float32)
        if in_service == "int8":
            files["int8"] = version / MODEL
        else:
            try:
                quantized = quantize(float32, inputs, profile.isa)
            except ExportError as error:
                unmade = str(error)
            else:
                files["int8"] = Path(folder) / "int8.onnx"
                files["int8"].write_bytes(quantized)
        networks = {name: Network(path, profile) for name, path in files.items()}
        sizes = {name: path.stat().st_size for name, path in files.items()}
    latency = latencies(networks, seconds=seconds)
    logits = {name: network.run(inputs) for name, network in networks.items() if name != "dense"}
    verdict = None
    if "int8" in logits:
        verdict = judge(logits["int8"], logits["shrunk"], labels, latency["shrunk"].p50 / latency["int8"].p50)
    rows = {
        name: Row(
            accuracy=float(np.mean(logits[name].argmax(axis=1) == labels)) if name in logits else None,
            agreement=verdict.agreement if verdict and name == "int8" else None,
            bytes=sizes[name],
            parameters=counted.get("parameters_dense" if name == "dense" else "parameters"),
            macs=counted.get("macs_dense" if name == "dense" else "macs"),
            latency=latency[name],
            faster=latency["dense"].p50 / latency[name].p50,
            smaller=sizes["dense"] / sizes[name],
        )
        for name in networks
    }
    return Comparison(rows, in_service, len(labels), verdict.refusal if verdict else unmade)


def table(found: Comparison) -> str:
    """The same for people, in 84 columns."""
    lines = [
        f"{'':6}{'accuracy':>9}{'agrees':>8}{'KiB':>10}{'params':>8}{'MACs':>8}{'p50 ms':>9}{'p95 ms':>9}"
        f"{'faster':>8}{'smaller':>9}"
    ]
    for name, row in found.rows.items():
        lines.append(
            f"{name:6}{_percent(row.accuracy):>9}{_percent(row.agreement):>8}{row.bytes / 1024:10.1f}"
            f"{_short(row.parameters):>8}{_short(row.macs):>8}{row.latency.p50:9.3f}{row.latency.p95:9.3f}"
            f"{row.faster:7.1f}x{row.smaller:8.1f}x"
        )
    lines.append(f"in service: {found.in_service}; accuracy and agreement on {found.examples} validation examples")
    lines.append("no accuracy of dense: its file holds the weights that the run began with")
    if found.refusal:
        lines.append(f"int8 {found.refusal}")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _short(count: float | None) -> str:
    if count is None:
        return "-"
    power = sum(count >= limit for limit in (1e3, 1e6, 1e9))
    return f"{count / 1000**power:.1f}{['', 'k', 'M', 'G'][power]}"
