"""How fast updates of a ResNet-18 are folded, and in how much memory.

Each update is a payload file of 11.2 million float32 that is opened, checked and folded as the coordinator does it.
The bound is an in-place add of one dense model, made after each update. All times are medians of the CPU time of one
core, so that other work on the machine does not show. Memory is that of a child process beyond its imports, in models:
the sums, the previous global model and one mapped update.

A second table has the rules of shared.robust, which read all updates again from one file when the round is closed: CPU
seconds of a whole round, over those of the mean.

    python -m benchmarks.aggregation
"""

import argparse
import collections
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import RESULTS, peak_rss_mib, report
from shared.aggregation import Overlap, Rule, Update, WeightedMean
from shared.channels import ChannelLayout
from shared.codec import open_payload, write_payload
from shared.config_rounds import AggregationSettings
from shared.robust import rule_of
from shared.tensors import Array, Masks, Subnet, Tensors

LIMIT = 1 << 30
FILES = 10
"""Distinct updates, folded in turn: together larger than any cache."""


def resnet18() -> tuple[dict[str, tuple[int, ...]], ChannelLayout]:
    """The shapes of ResNet-18 for ten classes, and channel groups as pruning has them: one for each block's inner
    convolution, one for each stage's residual stream."""
    shapes: dict[str, tuple[int, ...]] = {}
    owners: dict[str, tuple[str | None, ...]] = {}
    groups: dict[str, int] = {}

    def convolution(name: str, out: int, into: int, kernel: int, group: str, source: str | None) -> None:
        groups[group] = out
        shapes[f"{name}.weight"] = (out, into, kernel, kernel)
        owners[f"{name}.weight"] = (group, source, None, None)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (out,)
            owners[f"{name}.bn.{part}"] = (group,)

    convolution("conv1", 64, 3, 3, "stage1", None)
    into, source = 64, "stage1"
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            name, stream = f"layer{stage}.{block}", f"stage{stage}"
            convolution(f"{name}.conv1", width, into, 3, f"{name}.conv1", source)
            convolution(f"{name}.conv2", width, width, 3, stream, f"{name}.conv1")
            if into != width:
                convolution(f"{name}.downsample", width, into, 1, stream, source)
            into, source = width, stream
    shapes["fc.weight"], owners["fc.weight"] = (10, 512), (None, "stage4")
    shapes["fc.bias"] = (10,)
    starts = dict(zip(groups, np.cumsum([0, *groups.values()]), strict=False))
    axes = {
        name: tuple(None if group is None else starts[group] + np.arange(groups[group]) for group in owner)
        for name, owner in owners.items()
    }
    return shapes, ChannelLayout(groups, axes)


def write_updates(folder: Path, layout: ChannelLayout, shapes: dict[str, tuple[int, ...]], keep: float) -> list[Path]:
    """FILES updates that hold `keep` of the channels of every group, each its own."""
    rng = np.random.default_rng(0)
    dense = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    paths = []
    for number in range(FILES):
        held: Masks = {group: rng.permutation(units) < keep * units for group, units in layout.groups.items()}
        tensors = {name: cut(array, layout, name, held) for name, array in dense.items()}
        path = folder / f"update-{keep}-{number}"
        with path.open("wb") as file:
            write_payload(file, Subnet(tensors, None if keep == 1 else held), run="benchmark", round=1, weight=10.0)
        paths.append(path)
    return paths


def cut(array: Array, layout: ChannelLayout, name: str, held: Masks) -> Array:
    for axis, positions in enumerate(layout.index(name, held)):
        if positions is not None:
            array = np.take(array, positions, axis)
    return array


def fold(
    paths: list[Path], updates: int, layout: ChannelLayout, previous: Tensors, rule: Rule = WeightedMean
) -> Iterator[tuple[float, float]]:
    """Fold so many updates; for each, CPU seconds of opening and checking, and of adding."""
    mean = rule(layout, overlap=Overlap.ANY)
    for number in range(updates):
        started = time.process_time()
        with open_payload(paths[number % len(paths)], limit=LIMIT) as payload:
            checked = time.process_time()
            mean.add(Update(payload.subnet, payload.header.weight))
            added = time.process_time()
        del payload
        yield checked - started, added - checked
    mean.result(previous)


def bound(elements: int) -> Iterator[float]:
    """CPU seconds of adding one array in place, again and again, from memory."""
    total = torch.zeros(elements)
    arrays = [torch.ones(elements) for _ in range(FILES)]
    for array in itertools.cycle(arrays):
        started = time.process_time()
        total.add_(array)
        yield time.process_time() - started


def peak_models(folder: Path, updates: int, keep: float, rule: str = "mean") -> float:
    """Peak memory, beyond imports, of a process that folds so many updates; in models."""
    command = [sys.executable, "-m", "benchmarks.aggregation", "--child", str(folder), str(updates), str(keep), rule]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(folder: Path, updates: int, keep: float, rule: str) -> None:
    shapes, layout = resnet18()
    before = peak_rss_mib()
    previous = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    model = sum(array.nbytes for array in previous.values()) / 2**20
    paths = [folder / f"update-{keep}-{number}" for number in range(FILES)]
    collections.deque(fold(paths, updates, layout, previous, named(rule, folder)), maxlen=0)
    print((peak_rss_mib() - before) / model)


def named(rule: str, folder: Path) -> Rule:
    return rule_of(AggregationSettings.model_validate({"rule": rule}), folder)


def rules(folder: Path, layout: ChannelLayout, previous: Tensors, updates: int) -> Iterator[dict[str, object]]:
    """Whole rounds of each rule."""
    plain = 0.0
    for rule in ("mean", "trimmed-mean", "median", "clipped-mean"):
        for keep in (1.0, 0.5):
            paths = [folder / f"update-{keep}-{number}" for number in range(FILES)]
            started = time.process_time()
            collections.deque(fold(paths, updates, layout, previous, named(rule, folder)), maxlen=0)
            took = time.process_time() - started
            plain = took if (rule, keep) == ("mean", 1.0) else plain
            yield {
                "rule": rule,
                "held": f"{keep:.0%}",
                "updates": updates,
                "round s": took,
                "over the dense mean": took / plain,
                "peak models": peak_models(folder, updates, keep, rule),
            }


def measure(directory: Path) -> None:
    torch.set_num_threads(1)  # folding uses one core, so the bound is one core's too
    shapes, layout = resnet18()
    elements = sum(int(np.prod(shape)) for shape in shapes.values())
    previous = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for keep in (1.0, 0.5):
            paths = write_updates(folder, layout, shapes, keep)
            for updates in (10, 100):
                # one update, one bound, in turn: what else the machine does hits both
                times = list(zip(fold(paths, updates, layout, previous), bound(elements), strict=False))
                check = statistics.median(times[0] for times, _ in times)
                add = statistics.median(times[1] for times, _ in times)
                least = statistics.median(adding for _, adding in times)
                rows.append(
                    {
                        "held": f"{keep:.0%}",
                        "updates": updates,
                        "bound ms": least * 1e3,
                        "add ms": add * 1e3,
                        "check ms": check * 1e3,
                        "bound/add": least / add,
                        "bound/(check+add)": least / (check + add),
                        "peak models": peak_models(folder, updates, keep),
                    }
                )
        report("aggregation", rows, directory=directory, elements=elements, tensors=len(shapes))
        report("aggregation_rules", list(rules(folder, layout, previous, 20)), directory=directory, elements=elements)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, updates, keep, rule = arguments.child
        child(Path(folder), int(updates), float(keep), rule)
    else:
        measure(arguments.results)


if __name__ == "__main__":
    main()
