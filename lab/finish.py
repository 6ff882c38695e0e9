"""What a person gets at the end of a run: tables on the terminal, and a report beside the run's files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from lab import plots, tables
from lab.data import class_counts, fleet_data
from lab.report import COST, LEARNED, Table, device_table, write_page, write_report
from lab.results import Result
from lab.summary import RunSummary, read_journal, summarize
from shared.config import AgentConfig, RunConfig
from shared.settings import example_toml

SMALL_FLEET = 12
"""Devices that a table on the terminal shows one by one."""


def finish(config: RunConfig, directory: Path, devices: Mapping[str, AgentConfig], console: Console) -> RunSummary:
    """Print the table of an emulated fleet, write `directory`/report.html and say where it and the exported models
    lie."""
    summary = summarize(read_journal(directory / "journal.jsonl"))
    _print_devices(console, summary, devices)
    counts: dict[str, list[int]] = {}
    classes: tuple[str, ...] = ()
    for name, data in fleet_data({name: agent.data for name, agent in devices.items()}):
        counts[name], classes = class_counts(data), data.classes
    _report(config, directory, summary, devices, counts, classes, console)
    return summary


def finish_simulation(
    config: RunConfig,
    result: Result,
    devices: Mapping[str, AgentConfig],
    counts: Mapping[str, Sequence[int]],
    classes: Sequence[str],
    console: Console,
) -> None:
    """Print how the fleet fares, and in a small one each device; write accuracy.svg and report.html beside the run.

    counts: device -> training examples of each class
    """
    _print_fleet(console, [result])
    if len(devices) <= SMALL_FLEET:
        _print_devices(console, result.summary, devices)
    (result.directory / "accuracy.svg").write_text(plots.accuracy_by_round(result.summary))
    _report(config, result.directory, result.summary, devices, counts, classes, console)


def finish_comparison(config: RunConfig, directory: Path, results: Sequence[Result], console: Console) -> None:
    """Print the algorithms side by side; write comparison.svg and comparison.html into the directory."""
    _print_fleet(console, results)
    drawing = plots.accuracy_by_algorithm(_curves(results))
    (directory / "comparison.svg").write_text(drawing)
    page = directory / "comparison.html"
    write_page(
        page,
        title=f"{len({result.label for result in results})} algorithms on {config.data.source}",
        lead=_lead(config, results[0].summary, "each algorithm"),
        drawings=[
            (
                "Accuracy over the rounds",
                "Mean over devices, weighted by test examples, and over seeds; before each round's training, and "
                "after the personalization at the end.",
                drawing,
            )
        ],
        heading="Algorithm by algorithm",
        note=tables.NOTE,
        table=tables.fleet_table(results),
        settings=example_toml(config),
    )
    console.print(f"report: {page}")


def _print_fleet(console: Console, results: Sequence[Result]) -> None:
    table = tables.fleet_table(results)
    # Two tables of a terminal's usual width: one that is cut off says less than none.
    console.print(_rich(table, tables.ACCURACY), _rich(table, tables.COST))


def _print_devices(console: Console, summary: RunSummary, devices: Mapping[str, AgentConfig]) -> None:
    table = device_table(summary, {name: agent.profile for name, agent in devices.items()})
    console.print(_rich(table, LEARNED), _rich(table, COST))
    for absent in summary.absent:
        console.print(f"[yellow]{absent} took part but did not report at the end[/]")


def _report(
    config: RunConfig,
    directory: Path,
    summary: RunSummary,
    devices: Mapping[str, AgentConfig],
    counts: Mapping[str, Sequence[int]],
    classes: Sequence[str],
    console: Console,
) -> None:
    report = directory / "report.html"
    write_report(
        report,
        summary,
        title=f"{config.algorithm.name} on {config.data.source}",
        lead=_lead(config, summary, config.algorithm.name),
        profiles={name: agent.profile for name, agent in devices.items()},
        settings=example_toml(config),
        class_counts=counts,
        classes=classes,
    )
    models = sorted(directory.glob("devices/*/state/models/**/model.onnx"))
    if models:
        console.print(f"{len(models)} personal models, checked and in service, for example {models[0]}")
    console.print(f"report: {report}")


def _curves(results: Sequence[Result]) -> dict[str, list[tuple[int, float]]]:
    """Label -> accuracy by round, the mean over seeds; the last point is the one after personalization."""
    curves: dict[str, dict[int, list[float]]] = {}
    for result in results:
        summary = result.summary
        rounds = [(point.number, point.evaluation) for point in summary.rounds]
        for number, evaluation in [*rounds, (len(rounds) + 1, summary.evaluation)]:
            if "accuracy" in evaluation:
                points = curves.setdefault(result.label, {})
                points.setdefault(number, []).append(evaluation["accuracy"].weighted_mean)
    return {label: [(number, fmean(values)) for number, values in points.items()] for label, points in curves.items()}


def _rich(table: Table, columns: Sequence[int]) -> RichTable:
    rich = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_footer=bool(table.footer), footer_style="bold")
    for index in columns:
        footer = table.footer[index] if table.footer else ""
        rich.add_column(table.header[index], justify="right" if index else "left", footer=footer, no_wrap=True)
    for row in table.rows:
        rich.add_row(*(row[index] for index in columns))
    return rich


def _lead(config: RunConfig, summary: RunSummary, what: str) -> str:
    partition = config.data.partition
    skew = {"dirichlet": f", Dirichlet {partition.alpha:g}", "classes": f", {partition.classes} classes each"}
    return (
        f"{config.fleet.devices} devices on {len(set(config.fleet.profiles))} firmware profiles, {len(summary.rounds)} "
        f"rounds of {what} on {config.model.name}; data: {config.data.source}"
        f"{skew.get(partition.kind, '')}."
    )
