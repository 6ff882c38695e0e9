"""The settings files that `talaria-coordinator enrol` puts beside a certificate. Pure text."""

from pathlib import Path

from coordinator.acl import COORDINATOR, Role
from shared.toml import toml_value


def settings_file(role: str, name: str, fleet: str, url: str, there: Path) -> tuple[str, str]:
    """Name and text of the settings of one member, whose files will lie in the folder `there`.

    A device's and a listener's are read by `talaria-agent`; a coordinator's, a client's and an observer's by
    `talaria-coordinator`.
    """
    broker = [
        "[broker]",
        f"url = {toml_value(url)}",
        f"ca_file = {_path(there / 'ca.pem')}",
        f"cert_file = {_path(there / f'{name}.pem')}",
        f"key_file = {_path(there / f'{name}.key')}",
    ]
    made = "# Made by `talaria-coordinator enrol`."
    if role in (Role.DEVICE, Role.LISTENER):
        lines = [
            f"{made} configs/agent.toml explains every setting; profile and data are yours to say.",
            f"device = {toml_value(name)}",
            f"fleet = {toml_value(fleet)}",
        ]
        if role == Role.DEVICE:
            lines.append(f"coordinator_key = {_path(there / 'coordinator.pub')}")
        return "agent.toml", "\n".join([*lines, "", *broker]) + "\n"
    lines = [f"{made} configs/production.toml explains every setting.", "[run]", f"fleet = {toml_value(fleet)}"]
    if role == COORDINATOR:
        lines.append(f"signing_key = {_path(there / 'signing.key')}")
        return "coordinator.toml", "\n".join([*lines, "", *broker]) + "\n"
    return "broker.toml", "\n".join([*lines, "", *broker]) + "\n"


def _path(path: Path) -> str:
    return toml_value(str(path))
