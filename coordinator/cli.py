"""talaria-coordinator: the command line. A command's module is imported when it is used, so help is quick."""

import sys

import click

from shared.commands import Entry, lazy_group
from shared.errors import TalariaError

COMMANDS = {
    "run": Entry("coordinator.run_command", "Run to the end: rounds, then personalization on every device."),
    "status": Entry("coordinator.status_command", "How the run in RUN_DIR stands, also while it is running."),
    "devices": Entry("coordinator.devices_command", "Every device of the run in RUN_DIR, those in trouble first."),
    "watch": Entry("coordinator.watch_command", "Decode what a fleet and its coordinator say to each other."),
    "audit": Entry("coordinator.audit_command", "Compute every closed round again, and compare it with the journal."),
    "release": Entry("coordinator.release_command", "Let a device out of quarantine."),
    "config": Entry("coordinator.config_command", "Settings of a run: `config show`."),
    "export": Entry("coordinator.export_command", "Write the global model of the run in RUN_DIR."),
    "enrol": Entry("coordinator.enrol_command", "Make certificates and keys for a fleet, its broker and its devices."),
    "revoke": Entry("coordinator.revoke_command", "Let devices in no more."),
}


@lazy_group(COMMANDS)
@click.version_option(package_name="talaria")
def cli() -> None:
    """Opens rounds for a fleet of devices, folds their updates, keeps the global model.

    \b
    talaria-coordinator config show -c configs/production.toml
    talaria-coordinator run -c configs/production.toml
    talaria-coordinator status runs/20260101-120000-hermes
    talaria-coordinator devices runs/20260101-120000-hermes --live
    talaria-coordinator export runs/20260101-120000-hermes -o model.onnx

    Exit status: 0 done, 1 the run failed, 2 a setting is wrong, 3 the broker cannot be used, 130 stopped from outside.
    """


def main() -> None:
    """The command; a TalariaError ends it with its text and exit code, without a traceback."""
    try:
        cli()
    except TalariaError as error:
        click.echo(f"talaria-coordinator: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"talaria-coordinator: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
