"""Which channels to keep: measures of their importance side by side, on real data. The table of docs/pruning.md.

    digits  scikit-learn's digits, digitscnn; the only one without TALARIA_DATA
    mnist   1500 training images of all clients together, lenet-small
    har     1500 training windows of phones and watches, har1d of half its width

A network is trained centrally, cut down once to a share of its parameters or of its multiply-accumulates (--cost), and
trained for one epoch more. Accuracies in percent on 1500 test examples (digits: 359): before the cut, right after it,
and after that epoch; and what is left of the other cost. All are means over the seeds of initialization and training.

Measures of one unit, from all of its parameters w:

    even        L1 norm, and every layer loses the same share of its units
    parameter   mean |w|: what is lost per parameter saved, compared across layers
    L1, L2      the norm over the mean of its layer
    gamma       |weight| of its BatchNorm over the mean of its layer; L1 where there is none
    taylor      |sum of w * dL/dw| on 512 training examples
    taylor/mean the same over the mean of its layer
    random      drawn

    [TALARIA_DATA=FOLDER] python -m benchmarks.importance [digits] [mnist] [har] [--cost macs]
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.common import RESULTS, report
from edge_agent.data.dataset import Dataset, Normalization
from edge_agent.data.sources import SOURCES
from shared.channel_trace import channel_layout
from shared.channels import ChannelLayout
from shared.model_state import state_tensors
from shared.models import build_model
from shared.pruning import shrink
from shared.selection import Importance, drop, mac_cost, parameter_cost, unit_sums
from shared.tensors import Tensors
from shared.training import Split, evaluate, gradients, sgd

KEPT = (0.5, 0.25, 0.1)
TRAINING, TEST = 1500, 1500


@dataclass(frozen=True)
class Case:
    """A model and how it is trained before the cut; after it, the learning rate is a fifth."""

    model: str
    read: Callable[[], Dataset]
    epochs: int
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)


def mnist() -> Dataset:
    folder = Path(os.environ["TALARIA_DATA"]) / "mnist-dirichlet-20"
    parts = [SOURCES["npz"](path, classes=tuple("0123456789")) for path in sorted(folder.glob("client-*.npz"))]
    inputs, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("inputs", "labels"))
    return Dataset(inputs, labels, parts[0].classes, parts[0].normalization)


def har() -> Dataset:
    columns = tuple(f"{axis}_{sensor}" for sensor in ("acc", "gyro") for axis in "xyz")
    path = Path(os.environ["TALARIA_DATA"]) / "har-phone-watch" / "DATA.zip"
    return SOURCES["csv"](path, columns=columns, window=40, stride=40, files=r"(s\d+)_\d+_(sp|sw)\.csv")


CASES = {
    "digits": Case("digitscnn", lambda: SOURCES["digits"](None), 8, 0.05),
    "mnist": Case("lenet-small", mnist, 5, 0.05),
    "har": Case("har1d", har, 5, 0.05, {"channels": 6, "length": 40, "classes": 5, "width": 16}),
}


def splits(dataset: Dataset, seed: int) -> tuple[Split, Split]:
    """Training and test examples: different ones for every seed."""
    order = np.random.default_rng(seed).permutation(len(dataset.labels))
    test = min(TEST, len(order) // 5)
    chosen = {"test": order[:test], "train": order[test : test + TRAINING]}
    normalization = dataset.normalization or Normalization.measured(dataset.take(chosen["train"]))
    made = {
        name: Split(
            torch.from_numpy(np.ascontiguousarray(normalization.apply(dataset.take(indices)))),
            torch.from_numpy(dataset.labels[indices].astype(np.int64)),
        )
        for name, indices in chosen.items()
    }
    return made["train"], made["test"]


def train(model: nn.Module, split: Split, epochs: int, lr: float, seed: int) -> None:
    sgd(
        model,
        split,
        epochs=epochs,
        lr=lr,
        batch_size=32,
        momentum=0.9,
        generator=torch.Generator().manual_seed(seed),
        check_time=lambda: None,
    )


# --- measures -------------------------------------------------------------------------------------------------------


def measures(model: nn.Module, layout: ChannelLayout, split: Split, seed: int) -> dict[str, Importance]:
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    l1, count, squares = (
        unit_sums(each(weights, change), layout, layout.full()) for change in (np.abs, np.ones_like, np.square)
    )
    change = taylor(model, layout, split)
    random = np.random.default_rng(seed)
    return {
        "even": each(l1, lambda one: np.argsort(np.argsort(one)) / one.size),
        "parameter": {group: l1[group] / count[group] for group in l1},
        "L1": each(l1, over_mean),
        "L2": each(squares, lambda one: over_mean(np.sqrt(one))),
        "gamma": each({**l1, **gammas(model, layout)}, over_mean),
        "taylor": change,
        "taylor/mean": each(change, over_mean),
        "random": each(l1, lambda one: random.random(one.size)),
    }


def each(arrays: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: change(array) for name, array in arrays.items()}


def over_mean(one: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return one / float(one.mean())


def gammas(model: nn.Module, layout: ChannelLayout) -> dict[str, npt.NDArray[np.float64]]:
    """Of the groups that have BatchNorm."""
    weights: Tensors = {
        f"{path}.weight": np.abs(layer.weight.detach().numpy())
        for path, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
    }
    return {group: one for group, one in unit_sums(weights, layout, layout.full()).items() if one.any()}


def taylor(model: nn.Module, layout: ChannelLayout, split: Split) -> Importance:
    named = dict(model.named_parameters())
    model.eval()
    slopes = gradients(model, list(named.values()), split.inputs[:512], split.labels[:512])
    changes = {name: (one.detach() * slope).numpy() for (name, one), slope in zip(named.items(), slopes, strict=True)}
    return each(unit_sums(changes, layout, layout.full()), np.abs)


# --- the comparison -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Accuracies before the cut, after it, and after an epoch more; share that is left of the other cost."""

    before: float
    cut: float
    trained: float
    other: float


def compare(case: Case, dataset: Dataset, seed: int, unit: str, multiple: int) -> dict[tuple[str, float], Outcome]:
    """For every measure and share that is kept."""
    training, test = splits(dataset, seed)
    model = build_model(case.model, dict(case.options), seed=seed)
    layout = channel_layout(model, training.inputs[:2])
    train(model, training, case.epochs, case.lr, seed)
    before = evaluate(model, test).accuracy
    costs = {
        "parameters": parameter_cost(state_tensors(model), layout),
        "macs": mac_cost(model, layout, training.inputs[:1]),
    }
    cost = costs.pop(unit)
    (other,) = costs.values()
    full, found = layout.full(), {}
    for measure, importance in measures(model, layout, training, seed).items():
        for kept in KEPT:
            held = drop(importance, layout, full, cost=cost, goal=kept * cost(full), multiple=multiple)
            small = shrink(model, layout, held)
            cut = evaluate(small, test).accuracy
            train(small, training, 1, case.lr / 5, seed)
            trained = evaluate(small, test).accuracy
            found[measure, kept] = Outcome(before, cut, trained, other(held) / other(full))
    return found


def rows(name: str, seeds: Sequence[Mapping[tuple[str, float], Outcome]], unit: str) -> Iterator[dict[str, object]]:
    for measure in dict.fromkeys(measure for measure, _ in seeds[0]):
        row: dict[str, object] = {"data": name, "measure": measure}
        for kept in KEPT:
            before, cut, trained, other = (
                100 * fmean(getattr(one[measure, kept], field.name) for one in seeds) for field in fields(Outcome)
            )
            row |= {"before": f"{before:.1f}", f"{kept:.0%}": f"{cut:.1f}", f"{kept:.0%} + 1": f"{trained:.1f}"}
            row |= {f"{kept:.0%} {'macs' if unit == 'parameters' else 'parameters'}": f"{other:.0f}"}
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; without any, all that there is data for")
    parser.add_argument("--cost", choices=("parameters", "macs"), default="parameters", help="what is cut down")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--multiple", type=int, default=4, help="channels of a layer stay a multiple of this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table: list[dict[str, object]] = []
    for name in options.cases or (CASES if "TALARIA_DATA" in os.environ else ["digits"]):
        dataset = CASES[name].read()
        seeds = [compare(CASES[name], dataset, seed, options.cost, options.multiple) for seed in range(options.seeds)]
        table += rows(name, seeds, options.cost)
    report(f"importance_{options.cost}", table, directory=options.results, multiple=options.multiple)


if __name__ == "__main__":
    main()
