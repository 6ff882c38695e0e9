"""`talaria-coordinator config`: the settings of a run."""

import json
from pathlib import Path

import click

from coordinator.options import CONFIG, JSON, SET
from shared.settings import explain, load_run_config
from shared.toml import toml_value


@click.group()
def config() -> None:
    """Settings of a run."""


@config.command()
@CONFIG
@SET
@JSON
def show(config: Path | None, sets: tuple[str, ...], as_json: bool) -> None:
    """Every effective setting, and where it comes from: the file, --set, or a default."""
    loaded = load_run_config(config, sets)
    from shared.algorithms import algorithm, hyperparameters  # imports torch: a wrong setting is named before that

    chosen = loaded.config.algorithm
    rows = explain(loaded, hyperparameters(algorithm(chosen.name), chosen.hyperparameters))
    if as_json:
        entries = [{"key": r.key, "value": r.value, "origin": r.origin, "description": r.description} for r in rows]
        click.echo(json.dumps(entries, default=str))
        return
    shown = [(row.key, "" if row.value is None else toml_value(row.value), row.origin) for row in rows]
    widths = [max(len(row[column]) for row in shown) for column in range(2)]
    for key, value, origin in shown:
        click.echo(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}")
