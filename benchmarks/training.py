"""One device's local training, beside the loop that PyTorch's tutorials write: DataLoader, torch.optim, channels first.

Both do the same epochs on the same examples from the same weights, in turns, on one thread; the time is CPU time, the
median over the turns. `ours` is shared.training.sgd as every round runs it. Then what each part of the difference is
worth, taken away from ours one at a time; what a process pays that trains once and ends (the first round of a device);
what the memory format is worth in an evaluation; and how near the arithmetic comes to the multiplications per second
that this core reaches in one large matrix product.

    python -m benchmarks.training
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import RESULTS, report
from shared import training
from shared.models import build_model, example_input
from shared.pruning import macs
from shared.training import Split, evaluate, sgd

LR, MOMENTUM = 0.01, 0.9
Train = Callable[[nn.Module, Split, int], None]


@dataclass(frozen=True)
class Case:
    """A model, the examples that a device has of what it takes, and its batch size."""

    model: str
    examples: int
    batch_size: int


CASES = (
    Case("lenet-small", 200, 10),
    Case("digitscnn", 200, 16),
    Case("har1d", 200, 16),
    Case("mobilenet_v2", 64, 16),
    Case("resnet18", 64, 16),
)


def ours(model: nn.Module, split: Split, batch_size: int) -> None:
    sgd(
        model,
        split,
        epochs=1,
        lr=LR,
        momentum=MOMENTUM,
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(0),
        check_time=lambda: None,
    )


def plain(model: nn.Module, split: Split, batch_size: int) -> None:
    loader = DataLoader(TensorDataset(split.inputs, split.labels), batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    model.train()
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@contextmanager
def usual_format() -> Iterator[None]:
    """Without channels last."""
    kept = training._reformat, training._memory_format
    training._reformat = lambda model, memory_format: None
    training._memory_format = lambda inputs: torch.contiguous_format
    try:
        yield
    finally:
        training._reformat, training._memory_format = kept


def channels_first(model: nn.Module, split: Split, batch_size: int) -> None:
    """Ours, but for the memory format."""
    with usual_format():
        ours(model, split, batch_size)


def with_loader(model: nn.Module, split: Split, batch_size: int) -> None:
    """Ours, but for the batches."""

    class Loaded(Split):
        def batches(self, size: int, generator: torch.Generator):  # type: ignore[no-untyped-def]
            return iter(DataLoader(TensorDataset(self.inputs, self.labels), size, shuffle=True, generator=generator))

    ours(model, Loaded(split.inputs, split.labels), batch_size)


def with_optimizer(model: nn.Module, split: Split, batch_size: int) -> None:
    """Ours, but for the step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    kept = training._step

    def step(parameters: list[nn.Parameter], *_: object) -> None:
        optimizer.step()
        optimizer.zero_grad()

    training._step = step
    try:
        ours(model, split, batch_size)
    finally:
        training._step = kept


WAYS: Mapping[str, Train] = {
    "ours": ours,
    "plain": plain,
    "channels first": channels_first,
    "DataLoader": with_loader,
    "torch.optim": with_optimizer,
}


def measure(case: Case, turns: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    example = example_input(case.model, {})
    split = Split(
        torch.randn(case.examples, *example.shape[1:], generator=generator),
        torch.randint(0, 5, (case.examples,), generator=generator),
    )
    start = build_model(case.model, {}, seed=0)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(turns + 1):
        for name, way in WAYS.items():
            model = copy.deepcopy(start)
            began = time.process_time()
            way(model, split, case.batch_size)
            if turn:  # the first turn warms caches up
                times[name].append(time.process_time() - began)
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "model": case.model,
        "batch": case.batch_size,
        "ours, ms per step": 1000 * median["ours"] / -(-case.examples // case.batch_size),
        "plain / ours": median["plain"] / median["ours"],
        **{f"{name} / ours": median[name] / median["ours"] for name in list(WAYS)[2:]},
        "evaluation, channels first / ours": evaluation(start, split, turns),
        # Backward is two products for each of the forward pass.
        "of peak": 3 * macs(start, example) * case.examples / median["ours"] / peak_macs(),
    }


def evaluation(model: nn.Module, split: Split, turns: int) -> float:
    """How much longer an evaluation takes channels first; of the same examples over and over, in whole batches."""
    many = Split(split.inputs.repeat(4, *[1] * (split.inputs.dim() - 1)), split.labels.repeat(4))
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(turns + 1):
        for usual in times:
            with usual_format() if usual else nullcontext():
                began = time.process_time()
                evaluate(model, many)
                times[usual].append(time.process_time() - began)
    return statistics.median(times[True][1:]) / statistics.median(times[False][1:])


def peak_macs() -> float:
    """Multiply-adds per second of one large float32 matrix product: the best of ten."""
    side = 1024
    left, right = torch.randn(side, side), torch.randn(side, side)
    best = float("inf")
    for _ in range(10):
        began = time.process_time()
        torch.mm(left, right)
        best = min(best, time.process_time() - began)
    return side**3 / best


def cold(way: str) -> float:
    """CPU seconds of a new process that trains digitscnn for one epoch, beyond those of importing torch."""

    def cpu_s(program: str) -> float:
        code = f"import torch, time\ntorch.set_num_threads(1)\nbegan = time.process_time()\n{program}\n"
        code += "print(time.process_time() - began)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(done.stdout)

    common = "from shared.training import Split, sgd\nfrom shared.models import build_model\n"
    common += "model = build_model('digitscnn', {}, seed=0)\n"
    common += "split = Split(torch.randn(200, 1, 8, 8), torch.randint(0, 10, (200,)))\n"
    trained = {
        "ours": "sgd(model, split, epochs=1, lr=.01, momentum=.9, batch_size=16, generator=torch.Generator(), "
        "check_time=lambda: None)",
        "plain": "from torch.utils.data import DataLoader, TensorDataset\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=.01, momentum=.9)\n"
        "for x, y in DataLoader(TensorDataset(split.inputs, split.labels), batch_size=16, shuffle=True):\n"
        "    optimizer.zero_grad()\n"
        "    torch.nn.functional.cross_entropy(model(x), y).backward()\n"
        "    optimizer.step()",
    }
    return statistics.median(cpu_s(common + trained[way]) for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="measurements of each way")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(case, options.turns) for case in CASES]
    ours_s, plain_s = cold("ours"), cold("plain")
    report(
        "training",
        rows,
        directory=options.results,
        first_round_ours_cpu_s=ours_s,
        first_round_plain_cpu_s=plain_s,
        first_round_ratio=plain_s / ours_s,
    )


if __name__ == "__main__":
    main()
