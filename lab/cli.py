"""talaria-lab: a whole fleet on one machine. What a command needs is imported when it is used, so help is quick."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shared.errors import TalariaError

if TYPE_CHECKING:
    from shared.config import RunConfig

CONFIG = click.option(
    "-c", "--config", type=click.Path(path_type=Path), help="TOML file of the run; without it, the bundled demo."
)
SET = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a setting: --set rounds.count=5")
DIRECTORY = click.option(
    "--run-dir", type=click.Path(path_type=Path), help="Folder for this run; a new one below run.directory without it."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Events as JSON lines, the summary as the last one.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """A whole federated fleet on this machine, with the programs that run on devices.

    \b
    demo      the bundled example: broker, coordinator and eight agents as processes, a live view, a report
    emulate   the same with a configuration of yours
    simulate  the same engine and agents in one process without a broker: for many devices and quick experiments
    chaos     a small fleet as processes under a seeded schedule of faults, and whether everything held
    check     whether an algorithm, ours or yours, does what every algorithm must do
    compose   the same fleet as containers: a compose file with the limits of the firmware profiles, keys and settings

    Models, algorithms and data sources of yours, package.module:name, are found in the current folder and on
    PYTHONPATH.

    Exit status: 0 the run came to its end, 1 it failed, 2 a setting is wrong, 3 the broker cannot be used.
    """
    sys.path.append(str(Path.cwd()))  # last, so that nothing that is installed is shadowed


@cli.command()
@SET
@DIRECTORY
@JSON
def demo(sets: tuple[str, ...], run_dir: Path | None, as_json: bool) -> None:
    """Eight devices on three firmware profiles learn handwritten digits with Hermes, over real MQTT.

    Takes about two minutes. Everything about it can be changed, for example --set rounds.count=5 or
    --set algorithm.name=fedavg; `talaria-coordinator config show` lists the settings.
    """
    _emulate(None, sets, run_dir, as_json)


@cli.command()
@CONFIG
@SET
@DIRECTORY
@JSON
def emulate(config: Path | None, sets: tuple[str, ...], run_dir: Path | None, as_json: bool) -> None:
    """Run a configuration as real processes: a broker, the coordinator and one agent per device."""
    _emulate(config, sets, run_dir, as_json)


@cli.command()
@CONFIG
@SET
@DIRECTORY
@click.option(
    "--algorithms", metavar="all|NAME,...", help="Compare these. Each gets those [algorithm] settings that it knows."
)
@click.option("--seeds", metavar="N,...", help="Compare over these seeds; without it, run.seed.")
@click.option("--export", is_flag=True, help="Every device exports its model to ONNX, a second each.")
@JSON
def simulate(
    config: Path | None,
    sets: tuple[str, ...],
    run_dir: Path | None,
    algorithms: str | None,
    seeds: str | None,
    export: bool,
    as_json: bool,
) -> None:
    """Run a configuration in one process, without a broker: same engine, same agents, same training.

    All cores train, and the data are read once. The same settings give the same bytes. The folder of the run gets
    results.jsonl, costs.jsonl, accuracy.svg and report.html.

    With --algorithms or --seeds: all of them on the same split of the data, one after the other, each in a folder
    ALGORITHM/seed-N of its own, and a comparison of them all: comparison.svg and comparison.html. Given again with the
    same --run-dir, what is finished is not done again.
    """
    from lab.simulate_command import compare_all, simulate_one

    settings, directory = _settings(config, sets, run_dir)
    if algorithms is None and seeds is None:
        simulate_one(settings, directory, export=export, as_json=as_json)
    elif export:
        raise click.UsageError("--export is for one simulation, without --algorithms and --seeds")
    else:
        compare_all(settings, directory, algorithms, seeds, as_json=as_json)


@cli.command()
@click.argument("name", metavar="ALGORITHM")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A hyperparameter: --set lr=0.1")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
def check(name: str, sets: tuple[str, ...], as_json: bool) -> None:
    """Check that an algorithm does what every algorithm must do.

    ALGORITHM is one of ours by its name, or yours as package.module:ALGORITHM. Takes seconds: a few rounds of a small
    network on made-up data.

    Exit status: 0 it passes every check, 1 it does not, 2 there is no such algorithm or a hyperparameter is wrong.
    """
    from lab.check_command import check_one

    check_one(name, sets, as_json=as_json)


@cli.command()
@CONFIG
@SET
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def compose(config: Path | None, sets: tuple[str, ...], directory: Path) -> None:
    """Write the fleet of a configuration as containers into DIRECTORY: compose.yaml, and what it mounts.

    One service per device, with the memory and the cores of its firmware profile; TLS, certificates and signatures are
    on. DIRECTORY/fleet holds the keys. docs/deploy.md says how the images are built and the fleet is started.
    """
    from lab.compose import write_fleet

    settings, _ = _settings(config, sets, None)
    write_fleet(settings, directory)
    click.echo(f"{settings.fleet.devices} devices: docker compose -f {directory / 'compose.yaml'} up")


@cli.command()
@CONFIG
@SET
@click.option("--minutes", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Of faults.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the schedule: the same seed, the same faults.")
@click.option("--faults", metavar="KIND,...", default="", help="Only these; a wrong name lists them all.")
@DIRECTORY
@JSON
def chaos(
    config: Path | None,
    sets: tuple[str, ...],
    minutes: float,
    seed: int,
    faults: str,
    run_dir: Path | None,
    as_json: bool,
) -> None:
    """Kill, cut, stop, fill and confuse a real fleet, and check that nothing is lost, counted twice or torn.

    Runs of a small network follow one another while faults strike; then they stop, and the open run must come to its
    end. docs/testing.md says what strikes and what is checked. Needs Mosquitto.

    Exit status: 0 everything holds, 1 something does not (its folder is kept), 2 a setting is wrong.
    """
    from lab.chaos_disk import own_mounts

    mounts = own_mounts()  # first: a process that has threads may not change its user namespace any more
    from lab.chaos_command import chaos_run

    kinds = tuple(filter(None, faults.split(",")))
    chaos_run(config, sets, minutes=minutes, seed=seed, kinds=kinds, folder=run_dir, mounts=mounts, as_json=as_json)


def _settings(config_file: Path | None, sets: tuple[str, ...], run_dir: Path | None) -> "tuple[RunConfig, Path]":
    """The configuration, and the folder of the run."""
    from shared.settings import bundled_config, load_run_config

    config = load_run_config(config_file or bundled_config("demo"), sets).config
    return config, run_dir or config.run.directory / time.strftime(f"%Y%m%d-%H%M%S-{config.algorithm.name}")


def _emulate(config_file: Path | None, sets: tuple[str, ...], run_dir: Path | None, as_json: bool) -> None:
    import asyncio

    from rich.console import Console

    from lab.emulate import emulate
    from lab.fleet import emulated_devices
    from lab.view import LiveView

    config, directory = _settings(config_file, sets, run_dir)
    console = Console(quiet=as_json, highlight=False)
    devices = emulated_devices(config, directory)
    profiles = {name: agent.profile for name, agent in devices.items()}
    with LiveView(console, rounds=config.rounds.count, devices=profiles) as view:
        view.say(f"{config.algorithm.name} on {config.data.source}: {len(devices)} devices, files in {directory}")

        def on_event(event: Mapping[str, Any]) -> None:
            view(event)
            if as_json:
                click.echo(json.dumps(event))

        status = asyncio.run(emulate(config, directory, on_event))
    if status != 0:
        raise click.exceptions.Exit(status)
    from lab.finish import finish  # plots take a second to import: nobody waits for it before the run

    summary = finish(config, directory, devices, console)
    if as_json:
        rows = [{"device": row.device, "examples": row.examples, **row.metrics} for row in summary.devices]
        click.echo(json.dumps({"event": "summary", "devices": rows, "report": str(directory / "report.html")}))


def main() -> None:
    """The command; a TalariaError ends it with its text and exit code, without a traceback."""
    try:
        cli()
    except TalariaError as error:
        click.echo(f"talaria-lab: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    except BaseExceptionGroup as group:
        errors, others = group.split(TalariaError)
        if others is not None or errors is None:
            raise
        first = errors.exceptions[0]
        click.echo(f"talaria-lab: {first}", err=True)
        raise SystemExit(getattr(first, "exit_code", 1)) from None


if __name__ == "__main__":
    main()
