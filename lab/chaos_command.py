"""`talaria-lab chaos`: a real fleet under faults, and what must hold after them."""

import asyncio
import json
import shutil
import signal
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from lab.chaos import Chaos, Report
from lab.chaos_plan import Kind
from shared.errors import ConfigError
from shared.settings import load_run_config

DEFAULTS = (
    "algorithm.name=fedavg",
    "algorithm.epochs=1",
    "data.source=digits",
    "data.max_per_class=12",
    "fleet.devices=4",
    'fleet.profiles=["container"]',
    "rounds.count=6",
    "rounds.deadline_s=20",
    "rounds.personalize_deadline_s=300",
    "transfer.stall_s=2",
    "broker.keepalive_s=5",
)
"""A small fleet with quick rounds, where no file is given."""


def chaos_run(
    config_file: Path | None,
    sets: tuple[str, ...],
    *,
    minutes: float,
    seed: int,
    kinds: tuple[str, ...],
    folder: Path | None,
    mounts: bool,
    as_json: bool,
) -> None:
    """Prints the report; click's Exit 1 if something does not hold: then the folder is kept.

    mounts: whether this process may mount file systems
    """
    if odd := sorted(set(kinds) - {*Kind}):
        raise ConfigError(f"no fault is called {', '.join(odd)}: there are {', '.join(Kind)}")
    config = load_run_config(config_file, sets if config_file else [*DEFAULTS, *sets]).config
    config = config.model_copy(update={"run": config.run.model_copy(update={"keep_updates": True})})
    place = folder or Path(tempfile.mkdtemp(prefix=f"talaria-chaos-{seed}-"))
    place.mkdir(parents=True, exist_ok=True)
    chaos = Chaos(
        config,
        place.absolute(),
        seed=seed,
        seconds=60 * minutes,
        kinds=tuple(Kind(name) for name in kinds) or tuple(Kind),
        mounts=mounts,
        say=lambda text: click.echo(text, err=True),
    )
    report = asyncio.run(_until_stopped(chaos))
    click.echo(json.dumps(asdict(report)) if as_json else describe(report))
    if report.violations:
        raise click.exceptions.Exit(1)
    if folder is None:
        shutil.rmtree(place, ignore_errors=True)


async def _until_stopped(chaos: Chaos) -> Report:
    """SIGTERM stops it like Ctrl-C, and nothing is left running."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await chaos.run()


def describe(report: Report) -> str:
    """The report for a person."""
    rounds, updates = sum(run["rounds"] for run in report.runs), sum(run["updates"] for run in report.runs)
    lines = [f"seed {report.seed}, {report.seconds:.0f} s of faults; full disks: {report.disk}"]
    lines += [f"  {count:4d}  {kind}" for kind, count in report.faults.items()]
    lines.append(f"{len(report.runs)} runs, {rounds} rounds recomputed bit for bit, {updates} updates counted once")
    lines.append(f"{report.receipts} receipts seen on the wire; starts: {_each(report.starts)}")
    lines.append(f"peak memory, MiB: {_each(report.peak_mib)}")
    if report.violations:
        lines += [f"VIOLATED: {text}" for text in report.violations]
        lines.append(f"again: talaria-lab chaos --minutes {report.seconds / 60:g} --seed {report.seed}")
        lines.append(f"what is left of it: {report.folder}")
    else:
        lines.append("everything holds")
    return "\n".join(lines)


def _each(values: dict[str, int] | dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
