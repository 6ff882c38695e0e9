"""What a person gets at the end of a run: the table on the terminal and the report beside the run's files."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from edge_agent.data import load
from lab.report import Table, device_table, write_report
from lab.summary import RunSummary, read_journal, summarize
from shared.config import AgentConfig, RunConfig
from shared.settings import example_toml


def finish(config: RunConfig, directory: Path, devices: Mapping[str, AgentConfig], console: Console) -> RunSummary:
    """Print the table, write `directory`/report.html and say where it and the exported models lie."""
    summary = summarize(read_journal(directory / "journal.jsonl"))
    profiles = {name: agent.profile for name, agent in devices.items()}
    console.print(_rich(device_table(summary, profiles)))
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


def _rich(table: Table) -> RichTable:
    rich = RichTable(show_footer=bool(table.footer), header_style="bold", footer_style="bold")
    for index, name in enumerate(table.header):
        footer = table.footer[index] if table.footer else ""
        rich.add_column(name, justify="left" if index < 2 else "right", footer=footer)
    for row in table.rows:
        rich.add_row(*row)
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
    counts, classes = {}, ()
    for name, agent in devices.items():
        data = load(agent.data)
        classes = data.classes
        found = Counter(data.train.labels.tolist())
        counts[name] = [found[index] for index in range(len(classes))]
    return counts, classes
