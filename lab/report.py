"""The end of a run: a table for the terminal and a page for people, both from the same summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2

from lab import plots
from lab.summary import DeviceSummary, RunSummary
from lab.wording import MISSING, beside, percent

LEARNED, COST = (0, 2, 3, 4, 5, 6, 7), (0, 8, 9, 10, 11)
"""Columns of the device table for a terminal: what was learned and kept, and what it cost."""

DEVICES = (
    "Accuracy on each device's own held-out examples. Parameters, MACs and channels as shares of the dense model. "
    "Bytes as counted by the agent, tasks and ONNX template included, beside what dense float32 FedAvg would have "
    "moved in the same rounds. Latency of one example in milliseconds, median, in ONNX Runtime on one thread; the "
    "whole fleet shared the machine."
)


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    footer: tuple[str, ...] = ()


def device_table(summary: RunSummary, profiles: Mapping[str, str]) -> Table:
    """One row per device; the last line holds plain means and sums.

    Parameters, MACs and channels are shares of the dense model; `/ FedAvg` is what dense float32 FedAvg would have
    moved in the same rounds.
    """
    header = (
        "device",
        "profile",
        "examples",
        "global acc.",
        "own acc.",
        "params",
        "MACs",
        "channels",
        "up / FedAvg",
        "down / FedAvg",
        "ONNX / dense",
        "ms / dense",
    )
    rows = tuple(
        (
            row.device,
            profiles.get(row.device, MISSING),
            str(row.examples),
            percent(row.metrics.get("accuracy_global")),
            percent(row.metrics.get("accuracy")),
            percent(row.share("parameters")),
            percent(row.share("macs")),
            percent(row.share("channels")),
            beside(row.metrics.get("bytes_up"), row.dense_up),
            beside(row.metrics.get("bytes_down"), row.dense_down),
            beside(row.metrics.get("onnx_bytes"), row.metrics.get("onnx_bytes_dense")),
            _latency(row),
        )
        for row in summary.devices
    )
    return Table(header, rows, _footer(summary) if rows else ())


def _latency(row: DeviceSummary) -> str:
    own, dense = row.metrics.get("latency_ms"), row.metrics.get("latency_ms_dense")
    return MISSING if own is None or dense is None else f"{own:.3f}/{dense:.3f}"


def _footer(summary: RunSummary) -> tuple[str, ...]:
    def total(name: str) -> float:
        return sum(row.metrics.get(name, 0) for row in summary.devices)

    return (
        "fleet",
        "",
        str(sum(row.examples for row in summary.devices)),
        percent(summary.mean("accuracy_global")),
        percent(summary.mean("accuracy")),
        percent(summary.share("parameters")),
        percent(summary.share("macs")),
        percent(summary.share("channels")),
        beside(total("bytes_up"), sum(row.dense_up for row in summary.devices)),
        beside(total("bytes_down"), sum(row.dense_down for row in summary.devices)),
        percent(summary.share("onnx_bytes")),
        percent(summary.share("latency_ms")),
    )


def write_report(
    path: Path,
    summary: RunSummary,
    *,
    title: str,
    lead: str,
    profiles: Mapping[str, str],
    settings: str,
    class_counts: Mapping[str, Sequence[int]],
    classes: Sequence[str],
) -> None:
    """Write the self-contained page: no script, no font, no picture from elsewhere."""
    model_bytes = summary.devices[0].model_bytes if summary.devices else 0
    pruned = any((share := row.share("parameters")) is not None and share < 1 for row in summary.devices)
    drawings = [
        (
            "What each device holds",
            "Training examples by class. No two devices see the same world.",
            plots.examples_by_class(class_counts, classes),
        ),
        (
            "Accuracy over the rounds",
            "Each thin line is a device's own model, before that round's training.",
            plots.accuracy_by_round(summary),
        ),
        (
            "What personalization gives",
            "The last global model beside the device's own one.",
            plots.accuracy_by_device(summary),
        ),
        (
            "Bytes on the way",
            "Payloads of the whole fleet, both directions.",
            plots.bytes_by_round(summary, model_bytes),
        ),
    ]
    if pruned:
        drawings[3:3] = [
            (
                "What pruning leaves",
                "Of the dense model, per device; latency measured in ONNX Runtime.",
                plots.shares_by_device(summary),
            ),
            (
                "Pruning over the rounds",
                "Channels in each device's updates. What a device removes after the last round is not in it.",
                plots.kept_by_round(summary),
            ),
        ]
    write_page(
        path,
        title=title,
        lead=lead,
        tiles=_tiles(summary),
        drawings=drawings,
        heading="Device by device",
        note=DEVICES,
        table=device_table(summary, profiles),
        absent=summary.absent,
        settings=settings,
    )


def write_page(
    path: Path,
    *,
    title: str,
    lead: str,
    drawings: Sequence[tuple[str, str, str]],
    heading: str,
    note: str,
    table: Table,
    settings: str,
    tiles: Sequence[Mapping[str, str]] = (),
    absent: Sequence[str] = (),
) -> None:
    """Write the page. drawings: title, note and SVG of each; heading, note: over the table."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((resources.files("lab") / "report.html.j2").read_text())
    page = template.render(
        title=title,
        lead=lead,
        tiles=tiles,
        plots=[{"title": name, "note": note, "svg": svg} for name, note, svg in drawings],
        table_title=heading,
        table_note=note,
        table=table,
        absent=absent,
        settings=settings,
    )
    path.write_text(page)


def _tiles(summary: RunSummary) -> list[dict[str, str]]:
    moved = sum(row.metrics.get("bytes_up", 0) + row.metrics.get("bytes_down", 0) for row in summary.devices)
    dense = sum(row.dense_up + row.dense_down for row in summary.devices)
    worst = min((row.metrics["accuracy"] for row in summary.devices if "accuracy" in row.metrics), default=None)
    return [
        {"value": percent(summary.mean("accuracy")), "label": "mean accuracy of the devices' own models"},
        {"value": percent(summary.mean("accuracy_global")), "label": "mean accuracy of the global model"},
        {"value": percent(worst), "label": "worst device, own model"},
        {"value": percent(summary.share("parameters")), "label": "of the parameters kept, mean"},
        {
            "value": f"{dense / moved:.1f}\N{MULTIPLICATION SIGN}" if moved else MISSING,
            "label": "fewer bytes than dense float32 FedAvg",
        },
    ]
