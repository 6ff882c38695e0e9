"""talaria-agent: the command line of one device. A command's module is imported when it is used, so help is quick."""

import click

from shared.commands import Entry, lazy_group
from shared.errors import TalariaError

COMMANDS = {
    "run": Entry("edge_agent.run_command", "Serve as a device: train, personalize, put the own model in service."),
    "status": Entry("edge_agent.status_command", "Ask the agent that runs on this machine how it is."),
    "install": Entry("edge_agent.service_command", "Make it a service of systemd, with the limits of its profile."),
    "uninstall": Entry("edge_agent.service_command", "Remove the service; what the device remembers stays."),
    "upgrade": Entry("edge_agent.upgrade_command", "Put another version into service, or go back to the one before."),
    "doctor": Entry("edge_agent.doctor", "Check broker, machine, packages and data before it matters."),
    "infer": Entry("edge_agent.infer_command", "Run the own model on files, or on request over MQTT."),
    "export": Entry(
        "edge_agent.export_command", "Write the own model as an ONNX file, or roll back to the previous one."
    ),
}


@lazy_group(COMMANDS)
@click.version_option(package_name="talaria")
def cli() -> None:
    """One device of a federated fleet. Its data and its model's personal part never leave it.

    \b
    talaria-agent doctor -c agent.toml
    talaria-agent run -c agent.toml
    talaria-agent run -c agent.toml --set broker.url=mqtts://broker.lan

    Exit status: 0 done, 1 it failed or doctor found a problem, 2 a setting is wrong, 3 the broker cannot be used.
    """


def main() -> None:
    """The command; a TalariaError ends it with its text and exit code, without a traceback."""
    try:
        cli()
    except TalariaError as error:
        click.echo(f"talaria-agent: {error}", err=True)
        raise SystemExit(error.exit_code) from None
    except OSError as error:  # no room on the disk, or no permission
        click.echo(f"talaria-agent: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
