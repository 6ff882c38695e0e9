"""What a person gets at the end of a run: the table on the terminal and the report beside the run's files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from edge_agent.data import load
from lab.report import COST, LEARNED, Table, device_table, write_report
from lab.summary import RunSummary, read_journal, summarize
from shared.config import AgentConfig, RunConfig
from shared.settings import example_toml


def finish(config: RunConfig, directory: Path, devices: Mapping[str, AgentConfig], console: Console) -> RunSummary:
    """Print the table, write `directory`/report.html and say where it and the exported models lie."""
    summary = summarize(read_journal(directory / "journal.jsonl"))
    profiles = {name: agent.profile for name, agent in devices.items()}
    table = device_table(summary, profiles)
    # Two tables of a terminal's usual width: one that is cut off says less than none.
    console.print(_rich(table, LEARNED), _rich(table, COST))
    for absent in summary.absent:
        console.print(f"[yellow]{absent} took part but did not report at the end[/]")
    counts, classes = _class_counts(devices)
    report = directory / "report.html"
    write_report(
        report,
        summary,
        title=f"{config.algorithm.name} on {config.data.source}",
        lead=_lead(config, summary),
        profiles=profiles,
        settings=example_toml(config),
        class_counts=counts,
        classes=classes,
    )
    models = sorted(directory.glob("devices/*/state/models/**/model.onnx"))
    if models:
        console.print(f"{len(models)} personal models, checked and in service, for example {models[0]}")
    console.print(f"report: {report}")
    return summary


def _rich(table: Table, columns: Sequence[int]) -> RichTable:
    rich = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_footer=bool(table.footer), footer_style="bold")
    for index in columns:
        footer = table.footer[index] if table.footer else ""
        rich.add_column(table.header[index], justify="right" if index else "left", footer=footer, no_wrap=True)
    for row in table.rows:
        rich.add_row(*(row[index] for index in columns))
    return rich


def _lead(config: RunConfig, summary: RunSummary) -> str:
    partition = config.data.partition
    skew = {"dirichlet": f", Dirichlet {partition.alpha:g}", "classes": f", {partition.classes} classes each"}
    return (
        f"{config.fleet.devices} devices on {len(set(config.fleet.profiles))} firmware profiles, {len(summary.rounds)} "
        f"rounds of {config.algorithm.name} on {config.model.name}; data: {config.data.source}"
        f"{skew.get(partition.kind, '')}."
    )


def _class_counts(devices: Mapping[str, AgentConfig]) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Training examples of each class per device, and the names of the classes."""
    counts: dict[str, list[int]] = {}
    classes: tuple[str, ...] = ()
    for name, agent in sorted(devices.items()):
        data = load(agent.data)
        classes = data.classes
        found = Counter(data.train.labels.tolist())
        counts[name] = [found[index] for index in range(len(classes))]
    return counts, classes
