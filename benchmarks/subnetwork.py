"""A device's local training in its subnetwork, beside the dense one: CPU time, memory, and bytes of what travels.

Per model the dense network, the masked one (dense shapes with zeros, as most implementations train it) and the shrunk
one that a Hermes device trains, with a quarter of the parameters, chosen as on a device. Steps take turns on one
thread; the time is CPU time, the median over the turns. Memory is what a process of its own takes for the steps at its
peak, beyond what it took before them. Weights are random: neither depends on them.

    python -m benchmarks.subnetwork
"""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import RESULTS, peak_rss_mib, report
from shared.channel_trace import channel_layout
from shared.model_state import state_tensors
from shared.models import build_model, example_input
from shared.pruning import macs, masked, shrink
from shared.selection import choose, parameter_cost
from shared.training import Split, sgd

KEEP = 0.25
WAYS = ("dense", "masked", "shrunk")


@dataclass(frozen=True)
class Case:
    """A model, and the batch size and steps that are measured."""

    model: str
    batch_size: int
    steps: int


CASES = (
    Case("lenet-small", 10, 20),
    Case("har1d", 32, 10),
    Case("lenet5", 20, 10),
    Case("mobilenet_v2", 32, 2),
    Case("resnet18", 32, 2),
)


def networks(case: Case) -> dict[str, nn.Module]:
    """The three networks of WAYS."""
    example = example_input(case.model, {})
    dense = build_model(case.model, {}, seed=0)
    layout, tensors = channel_layout(dense, example), state_tensors(dense)
    cost = parameter_cost(tensors, layout)
    held = choose(tensors, layout, None, cost=cost, goal=KEEP * cost(layout.full()))
    return {"dense": dense, "masked": masked(dense, layout, held), "shrunk": shrink(dense, layout, held)}


def train(model: nn.Module, case: Case) -> float:
    """CPU seconds of one step."""
    generator = torch.Generator().manual_seed(0)
    count = case.steps * case.batch_size
    inputs = torch.randn(count, *example_input(case.model, {}).shape[1:], generator=generator)
    split = Split(inputs, torch.randint(0, 5, (count,), generator=generator))
    began = time.process_time()
    sgd(
        model,
        split,
        epochs=1,
        lr=0.001,
        momentum=0.9,
        batch_size=case.batch_size,
        generator=generator,
        check_time=lambda: None,
    )
    return (time.process_time() - began) / case.steps


def memory_mib(case: Case, way: str) -> float:
    """Of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.subnetwork", "--memory", case.model, way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory_here(case: Case, way: str) -> float:
    model = networks(case)[way]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = peak_rss_mib()
    train(model, case)
    return peak_rss_mib() - before


def measure(case: Case, turns: int) -> list[dict[str, object]]:
    models = networks(case)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(turns + 1):
        for way, model in models.items():
            taken = train(model, case)
            if turn:  # the first turn warms caches up
                times[way].append(taken)
    median = {way: statistics.median(taken) for way, taken in times.items()}
    memory = {way: memory_mib(case, way) for way in WAYS}
    size = {way: sum(parameter.numel() for parameter in model.parameters()) for way, model in models.items()}
    work = {way: macs(model, example_input(case.model, {})) for way, model in models.items()}
    return [
        {
            "model": case.model,
            "network": way,
            "batch": case.batch_size,
            "parameters": f"{size[way] / size['dense']:.1%}",
            "MACs": f"{work[way] / work['dense']:.1%}",
            "ms/step": f"{1000 * median[way]:.2f}",
            "faster": f"{median['dense'] / median[way]:.2f}",
            "peak, MiB": f"{memory[way]:.0f}",
        }
        for way in WAYS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="measurements of each network")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "NETWORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        model, way = options.memory
        print(memory_here(next(case for case in CASES if case.model == model), way))
        return
    report("subnetwork", [row for case in CASES for row in measure(case, options.turns)], directory=options.results)


if __name__ == "__main__":
    main()
