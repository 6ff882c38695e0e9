"""The plots of a report, as SVG text that stands alone. Each takes a summary and returns one drawing."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from lab.summary import RunSummary

OWN, GLOBAL, SOFT, GRID = "#0b7a75", "#c46a1b", "#8a97a5", "#e3e8ee"
STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": "#5c6b7a",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": "#5c6b7a",
    "ytick.color": "#5c6b7a",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's own font
    "svg.hashsalt": "talaria",  # the same run draws the same bytes
}


def _draw(paint: Callable[[Axes], None], *, height: float = 3.2) -> str:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        paint(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    return re.sub(r"font: ([^;\"]*)'DejaVu Sans'[^;\"]*", r"font: \1system-ui, sans-serif", svg[svg.index("<svg") :])


def _rows(axes: Axes, count: int, *, legend_columns: int) -> None:
    """One row per device, however many there are, and the legend above them."""
    axes.set_ylim(-0.7, count - 0.3)
    axes.grid(visible=False, axis="y")
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(loc="outside upper center", ncols=legend_columns, columnspacing=0.8, handlelength=0.9)


def accuracy_by_round(summary: RunSummary) -> str:
    """Accuracy of each device's own model before every round's training, and the means of own and global model."""

    def paint(axes: Axes) -> None:
        for device in sorted({device for point in summary.rounds for device in point.accuracy}):
            points = [(p.number, p.accuracy[device]) for p in summary.rounds if device in p.accuracy]
            axes.plot(*zip(*points, strict=True), color=OWN, alpha=0.22, linewidth=1)
        for name, color, label in (("accuracy", OWN, "own model"), ("accuracy_global", GLOBAL, "global model")):
            means = [
                (p.number, sum(values.values()) / len(values)) for p in summary.rounds if (values := getattr(p, name))
            ]
            if means:
                axes.plot(*zip(*means, strict=True), color=color, linewidth=2.4, marker="o", markersize=4, label=label)
        axes.set(xlabel="round", ylabel="accuracy", ylim=(0, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if summary.rounds:
            axes.legend(loc="lower right")

    return _draw(paint)


def accuracy_by_algorithm(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """One line per algorithm: (round, accuracy)."""

    def paint(axes: Axes) -> None:
        colors = mpl.colormaps["tab20" if len(curves) > 10 else "tab10"]
        for index, (label, points) in enumerate(curves.items()):
            axes.plot(*zip(*points, strict=True), color=colors(index % colors.N), linewidth=1.8, label=label)
            axes.plot(*points[-1], color=colors(index % colors.N), marker="o", markersize=4)
        axes.set(xlabel="round", ylabel="accuracy", ylim=(0, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if curves:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)

    return _draw(paint, height=4.0)


def accuracy_by_bytes(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """One line per method: (MB moved, accuracy), the bytes on a logarithmic scale. What is far below where the last one
    ends is cut off: there all are bad."""

    def paint(axes: Axes) -> None:
        colors = mpl.colormaps["tab10"]
        for index, (label, points) in enumerate(curves.items()):
            axes.plot(
                *zip(*points, strict=True), color=colors(index), linewidth=1.8, marker="o", markersize=4, label=label
            )
        axes.set(xlabel="MB moved, up and down, whole fleet", ylabel="accuracy", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        if curves:
            axes.set_ylim(bottom=max(0.0, min(points[-1][1] for points in curves.values()) - 0.25))
            axes.legend(loc="lower right", fontsize=8)

    return _draw(paint, height=3.6)


def accuracy_by_device(summary: RunSummary) -> str:
    """Global model against own model, device by device."""
    rows = [row for row in reversed(summary.devices) if {"accuracy", "accuracy_global"} <= set(row.metrics)]

    def paint(axes: Axes) -> None:
        for y, row in enumerate(rows):
            axes.plot(
                [row.metrics["accuracy_global"], row.metrics["accuracy"]], [y, y], color=GRID, linewidth=3, zorder=1
            )
        axes.scatter(
            [r.metrics["accuracy_global"] for r in rows], range(len(rows)), color=GLOBAL, s=42, label="global", zorder=2
        )
        axes.scatter([r.metrics["accuracy"] for r in rows], range(len(rows)), color=OWN, s=42, label="own", zorder=3)
        axes.set_yticks(range(len(rows)), [row.device for row in rows])
        axes.set(xlabel="accuracy on the device's own held-out data")
        _rows(axes, len(rows), legend_columns=2)

    return _draw(paint, height=max(2.4, 0.34 * len(rows) + 1.1))


def kept_by_round(summary: RunSummary) -> str:
    """Share of the channels in each device's updates: masks only shrink."""

    def paint(axes: Axes) -> None:
        for device in sorted({device for point in summary.rounds for device in point.kept}):
            points = [(p.number, p.kept[device]) for p in summary.rounds if device in p.kept]
            axes.step(*zip(*points, strict=True), where="post", alpha=0.8, linewidth=1.6, label=device)
        axes.set(xlabel="round", ylabel="channels kept", ylim=(0, 1.05))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if summary.rounds and len(summary.devices) <= 10:
            axes.legend(loc="upper right", ncols=2, fontsize=8)

    return _draw(paint)


def bytes_by_round(summary: RunSummary, model_bytes: int) -> str:
    """Bytes of the whole fleet, added up, beside what dense float32 FedAvg moves for the same updates."""

    def paint(axes: Axes) -> None:
        numbers, ours, dense = [0], [0.0], [0.0]
        for point in summary.rounds:
            numbers.append(point.number)
            ours.append(ours[-1] + (point.bytes_up + point.bytes_down) / 1e6)
            dense.append(dense[-1] + 2 * model_bytes * len(point.kept) / 1e6)
        axes.plot(numbers, dense, color=SOFT, linewidth=2, linestyle="--", label="dense float32 FedAvg")
        axes.plot(numbers, ours, color=OWN, linewidth=2.4, marker="o", markersize=4, label="this run")
        axes.fill_between(numbers, ours, color=OWN, alpha=0.12)
        axes.set(xlabel="round", ylabel="MB moved, up and down", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left")

    return _draw(paint)


def shares_by_device(summary: RunSummary) -> str:
    """Channels, parameters, MACs and latency that each device keeps, as a share of the dense model."""
    names = (("channels", "channels"), ("parameters", "parameters"), ("macs", "MACs"), ("latency_ms", "latency"))
    rows = list(reversed(summary.devices))

    def paint(axes: Axes) -> None:
        colors = ("#bfe3e0", "#6cbfb9", OWN, GLOBAL)
        for offset, ((name, label), color) in enumerate(zip(names, colors, strict=True)):
            values = [(y, share) for y, row in enumerate(rows) if (share := row.share(name)) is not None]
            places = [y + 0.3 - 0.2 * offset for y, _ in values]
            axes.barh(places, [share for _, share in values], height=0.19, color=color, label=label)
        axes.set_yticks(range(len(rows)), [row.device for row in rows])
        axes.axvline(1.0, color=SOFT, linewidth=1, linestyle="--")
        axes.set(xlabel="share of the dense model")
        _rows(axes, len(rows), legend_columns=4)

    return _draw(paint, height=max(2.6, 0.5 * len(rows) + 1.1))


def examples_by_class(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> str:
    """How many training examples of each class every device holds: the skew that personalization answers."""
    devices = list(reversed(list(counts)))

    def paint(axes: Axes) -> None:
        colors = mpl.colormaps["tab20" if len(classes) > 10 else "tab10"]
        left = [0] * len(devices)
        for index, name in enumerate(classes):
            widths = [counts[device][index] for device in devices]
            axes.barh(range(len(devices)), widths, left=left, height=0.66, color=colors(index % colors.N), label=name)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(devices)), devices)
        axes.set(xlabel="training examples")
        _rows(axes, len(devices), legend_columns=min(10, len(classes)))

    return _draw(paint, height=max(2.4, 0.34 * len(devices) + 1.2))
