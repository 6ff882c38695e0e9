"""What a network of fewer channels, and int8, are worth in ONNX Runtime: one example at a time, on one thread.

All variants of a model take turns in one process, and every ratio is to the dense float32 file of the same turns. The
time is CPU time of the thread, the median over the turns, so that other load on the machine does not count. Every
channel group keeps the same share of its channels, in multiples of 8. The weights are random: speed does not ask for
more, and accuracy is not measured here. `int8` is the variant for a processor with VNNI, or for one without it
(`--isa`), which keeps weights to 7 bits and is as fast on the same processor.

Then what is left besides arithmetic: the share of a run that is spent outside of convolutions and linear layers.

    python -m benchmarks.inference
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np
import torch

from benchmarks.common import RESULTS, report
from coordinator.template import dense_template
from edge_agent.quantization import quantize
from shared.channel_trace import channel_layout
from shared.model_state import state_tensors
from shared.models import build_model, example_input
from shared.onnx_file import INPUT, OUTPUT, fill
from shared.onnx_runtime import onnxruntime, open_session, optimize
from shared.pruning import macs, shrink
from shared.tensors import Array

MODELS = ("resnet18", "mobilenet_v2")
KEPT = (1.0, 0.5, 0.3)
MULTIPLE = 8
Variant: TypeAlias = tuple[float, str]
"""(share of the channels kept, dtype)."""
DENSE: Variant = (1.0, "float32")
ARITHMETIC = ("Conv", "FusedConv", "QLinearConv", "Gemm", "FusedGemm", "QGemm")


def files(model: str, isa: str) -> dict[Variant, tuple[bytes, int]]:
    """ONNX file and multiply-adds of each variant."""
    dense, example = build_model(model, {}, seed=0).eval(), example_input(model, {})
    template, layout = dense_template(dense, example, {}), channel_layout(dense, example)
    inputs = torch.randn(64, *example.shape[1:], generator=torch.Generator().manual_seed(0)).numpy()
    found: dict[Variant, tuple[bytes, int]] = {}
    for kept in KEPT:
        held = {}
        for group, units in layout.groups.items():
            count = min(units, max(MULTIPLE, MULTIPLE * round(kept * units / MULTIPLE)))
            held[group] = np.arange(units) < count
        network = shrink(dense, layout, held).eval()
        float32 = optimize(fill(template, state_tensors(network), {}))
        found[kept, "float32"] = float32, macs(network, example)
        found[kept, "int8"] = quantize(float32, inputs, isa), macs(network, example)
    return found


def cpu_ms(
    sessions: Mapping[Variant, onnxruntime.InferenceSession], example: Array, seconds: float
) -> dict[Variant, float]:
    """Median CPU time of one example, in turns, after three that do not count."""
    times: dict[Variant, list[float]] = {name: [] for name in sessions}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, session in sessions.items():
            began = time.thread_time()
            session.run([OUTPUT], {INPUT: example})
            times[name].append(1000 * (time.thread_time() - began))
    return {name: statistics.median(each[3:]) for name, each in times.items()}


def compare(model: str, isa: str, seconds: float) -> list[dict[str, object]]:
    variants = files(model, isa)
    example = np.random.default_rng(0).normal(size=example_input(model, {})[:1].shape).astype(np.float32)
    times = cpu_ms({name: open_session(data) for name, (data, _) in variants.items()}, example, seconds)
    largest, most = variants[DENSE]
    return [
        {
            "model": model,
            "channels": f"{kept:.0%}",
            "dtype": dtype,
            "MMACs": count / 1e6,
            "KiB": len(data) / 1024,
            "CPU ms": times[kept, dtype],
            "fewer MACs": most / count,
            "smaller": len(largest) / len(data),
            "faster": times[DENSE] / times[kept, dtype],
            "not arithmetic": overhead(data, example),
        }
        for (kept, dtype), (data, count) in variants.items()
    ]


def overhead(data: bytes, example: Array, runs: int = 100) -> float:
    """Share of the operators' time that is not spent in convolutions and linear layers, by the runtime's profile."""
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run([OUTPUT], {INPUT: example})
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    arithmetic = sum(event["dur"] for event in kernels if event["args"]["op_name"] in ARITHMETIC)
    whole = sum(event["dur"] for event in events if event["name"] == "model_run")
    return float(1 - arithmetic / whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="x86-64-vnni", help="as in a firmware profile: which variant of int8")
    parser.add_argument("--seconds", type=float, default=10.0, help="of measuring for each model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for model in MODELS for row in compare(model, options.isa, options.seconds)]
    facts: Mapping[str, object] = {"isa": options.isa, "onnxruntime": onnxruntime.__version__}
    report("inference", rows, directory=options.results, **facts)


if __name__ == "__main__":
    main()
