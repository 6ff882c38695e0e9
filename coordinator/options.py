"""Options that several commands of talaria-coordinator share."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
CONFIG = click.option("-c", "--config", type=PATH, help="TOML file of the run; without it, the defaults.")
SET = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a setting: --set rounds.count=5")
JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
RUN_DIR = click.argument("run_dir", type=PATH)
LIVE = click.option("--live", is_flag=True, help="A table that keeps up, until Ctrl-C or the end.")
