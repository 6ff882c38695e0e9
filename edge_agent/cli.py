"""talaria-agent: the command line of one device. A command's module is imported when it is used, so help is quick."""

import importlib
from dataclasses import dataclass

import click

from shared.errors import TalariaError


@dataclass(frozen=True)
class Entry:
    """Where a command is, and what the overview says about it."""

    module: str
    help: str


COMMANDS = {
    "run": Entry("edge_agent.run_command", "Serve as a device: train, personalize, put the own model in service."),
    "doctor": Entry("edge_agent.doctor", "Check broker, machine, packages and data before it matters."),
    "infer": Entry("edge_agent.infer_command", "Run the own model on files, or on request over MQTT."),
    "export": Entry(
        "edge_agent.export_command", "Write the own model as an ONNX file, or roll back to the previous one."
    ),
}


class LazyGroup(click.Group):
    """Commands by name, each a function of the same name in its module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name].module), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="talaria")
def cli() -> None:
    """One device of a federated fleet. Its data and its model's personal part never leave it.

    \b
    talaria-agent doctor -c agent.toml
    talaria-agent run -c agent.toml
    talaria-agent run --set device=kitchen --set broker.url=mqtt://192.168.1.10

    Exit status: 0 done, 1 it failed or doctor found a problem, 2 a setting is wrong, 3 the broker cannot be used.
    """


def main() -> None:
    """The command; a TalariaError ends it with its text and exit code, without a traceback."""
    try:
        cli()
    except TalariaError as error:
        click.echo(f"talaria-agent: {error}", err=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
