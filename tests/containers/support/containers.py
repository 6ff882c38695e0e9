"""A fleet under podman-compose: made by `talaria-lab compose`, watched and disturbed from outside."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from click.testing import CliRunner

from lab.cli import cli

T = TypeVar("T")
COMMON = [
    "rounds.quorum=2",
    "rounds.deadline_s=300",
    "rounds.personalize_deadline_s=300",
    "algorithm.finetune_epochs=1",
    "algorithm.accuracy_threshold=0.0",
]


def podman(*arguments: str, check: bool = True) -> str:
    """What it prints; AssertionError with what it said where it fails."""
    command = ["podman", *arguments]
    # conmon leaves a file `oom` wherever it was started.
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tempfile.gettempdir())
    assert not check or done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr[-2000:]}"
    return done.stdout.strip()


class Fleet:
    """Containers are called as their services."""

    def __init__(
        self, directory: Path, name: str, profiles: list[str], settings: list[str], change: Callable[[str], str]
    ) -> None:
        """A device of each profile. `change` is given what `talaria-lab compose` wrote."""
        self.directory = directory
        self.name = name
        self.devices = [f"{profile}-{index:02}" for index, profile in enumerate(profiles)]
        fleet = [
            f"run.fleet={name}",
            f"fleet.devices={len(profiles)}",
            f"fleet.profiles={json.dumps(profiles)}",
            f"rounds.min_devices={len(profiles)}",
        ]
        given = (part for text in [*fleet, *COMMON, *settings] for part in ("--set", text))
        made = CliRunner().invoke(cli, ["compose", str(directory), *given])
        assert made.exit_code == 0, made.output
        self._file = directory / "compose.yaml"
        self._file.write_text(change(self._file.read_text()))
        # Without the capability to raise them, podman's own limits, which are higher, cannot be set. In a test of its
        # own file, so that nothing of this machine's settings counts.
        containers_conf = directory / "containers.conf"
        containers_conf.write_text('[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n')
        os.environ["CONTAINERS_CONF"] = str(containers_conf)

    def up(self) -> None:
        self._compose("up", "--detach")

    def down(self) -> None:
        """Print the logs, which pytest shows for a failure, and remove everything."""
        for service in ("broker", "coordinator", *self.devices):
            done = subprocess.run(
                ["podman", "logs", "--tail", "25", self.container(service)], capture_output=True, text=True
            )
            print(f"--- {service}\n{done.stdout}{done.stderr}")
        self._compose("down", "--volumes", "--timeout", "5")

    def _compose(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "podman_compose", "-f", str(self._file), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=self.directory)
        assert done.returncode == 0, done.stdout + done.stderr

    def container(self, service: str) -> str:
        return f"talaria-{self.name}_{service}_1"

    def exec(self, service: str, *command: str, check: bool = True) -> str:
        return podman("exec", self.container(service), *command, check=check)

    def state(self, service: str) -> dict[str, Any]:
        """Podman's: Status, ExitCode, Pid, ..."""
        (found,) = json.loads(podman("inspect", self.container(service)))
        state = found["State"]
        assert isinstance(state, dict)
        return state

    def status(self, device: str) -> str:
        """What the image's health check asks; empty where nobody answers."""
        command = ["talaria-agent", "status", "--state-dir", "/var/lib/talaria/agent", "--json"]
        return self.exec(device, *command, check=False)

    def healthy(self, service: str) -> bool:
        """Whether its health check, which podman runs by itself only where there is systemd, ends well."""
        command = ["podman", "healthcheck", "run", self.container(service)]
        return subprocess.run(command, capture_output=True, timeout=300, cwd=tempfile.gettempdir()).returncode == 0

    def volume_name(self, service: str) -> str:
        return f"talaria-{self.name}_{service}"

    def volume(self, service: str) -> Path:
        """Where the state of a service lies on this machine."""
        return Path(podman("volume", "inspect", "--format", "{{.Mountpoint}}", self.volume_name(service)))

    def journal(self) -> list[dict[str, Any]]:
        """Every closed round so far."""
        path = self.volume("coordinator") / "run" / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def until(self, what: str, found: Callable[[], T], limit_s: float = 300) -> T:
        """Look twice a second until something is found: containers tell no events that outlive the broker."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if value := found():
                return value
            time.sleep(0.5)
        raise AssertionError(f"{what} did not come within {limit_s:.0f} s")
