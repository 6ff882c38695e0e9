"""The doctor: each check on what is well and on what is not."""

import asyncio
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from coordinator.broker import EmbeddedBroker
from edge_agent import doctor
from edge_agent.cli import cli
from edge_agent.proposal import Machine
from shared.config import AgentConfig
from shared.config_base import BrokerSettings
from shared.config_data import DataSettings
from shared.profiles import load_profile

CONTAINER = load_profile("container")


def agent_config(tmp_path: Path, url: str) -> AgentConfig:
    return AgentConfig(device="device", state_dir=tmp_path / "state", broker=BrokerSettings(url=url))


@pytest.fixture
def dead_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


async def test_broker_is_reached_and_its_packets_are_known(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path / "broker") as embedded:
        finding = await doctor.broker(agent_config(tmp_path, embedded.url), CONTAINER, 10)
    assert finding.status == "ok"
    assert f"chunks of {CONTAINER.link.max_packet - 512}" in finding.detail


async def test_broker_that_is_not_there(tmp_path: Path, dead_port: int) -> None:
    async with asyncio.timeout(10):
        finding = await doctor.broker(agent_config(tmp_path, f"mqtt://127.0.0.1:{dead_port}"), CONTAINER, 0.3)
    assert finding.status == "problem"
    assert str(dead_port) in finding.detail


def test_machine_that_fits_its_profile() -> None:
    found = Machine(cores=4, memory_mib=7900, isa="armv8.2-dotprod", board="Raspberry Pi 5 Model B Rev 1.0")
    (finding,) = doctor.machine(load_profile("rpi-5"), found)
    assert finding.status == "ok"
    assert doctor.proposed(load_profile("rpi-5"), found).profile == "rpi-5"


def test_machine_that_is_too_small_for_its_profile() -> None:
    found = Machine(cores=4, memory_mib=3800, isa="armv8.0", board="Raspberry Pi 4 Model B Rev 1.5")
    details = [
        finding.detail for finding in doctor.machine(load_profile("rpi-5"), found) if finding.status == "problem"
    ]
    assert details == ["3800 MiB, profile rpi-5 is for 8192 MiB"]
    finding = doctor.proposed(load_profile("rpi-5"), found)
    assert (finding.status, finding.profile) == ("warning", "rpi-4b")


def test_providers_that_the_runtime_lacks_are_named() -> None:
    finding = doctor.providers(load_profile("jetson-orin-nano"))
    assert finding.detail.startswith("CPUExecutionProvider will serve; TensorrtExecutionProvider, CUDA")


def test_state_folder(tmp_path: Path) -> None:
    assert doctor.state(tmp_path / "new").status == "ok"
    (tmp_path / "file").write_text("")
    finding = doctor.state(tmp_path / "file")
    assert finding.status == "problem"
    assert "state_dir" in finding.detail


def test_packages_are_tried_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_wheel.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert doctor.package("numpy", needed=True).detail == np.__version__
    broken = doctor.package("broken_wheel", needed=False)
    assert broken.status == "problem"
    assert "illegal instruction" in broken.detail
    assert doctor.package("no_such_package", needed=False).status == "warning"
    missing = doctor.package("no_such_package", needed=True)
    assert missing.status == "problem"
    assert "pip install" in missing.detail


def test_data(tmp_path: Path) -> None:
    config = agent_config(tmp_path, "mqtt://localhost")
    finding = doctor.data(config)
    assert finding.status == "ok"
    assert "10 classes" in finding.detail
    missing = config.model_copy(update={"data": DataSettings(source="npz", path=tmp_path / "missing.npz")})
    finding = doctor.data(missing)
    assert finding.status == "problem"
    assert "missing.npz" in finding.detail


def test_command_reports_a_problem_in_json_and_exit_status(tmp_path: Path, dead_port: int) -> None:
    settings = ["device=device", f"state_dir={tmp_path / 'state'}", f"broker.url=mqtt://127.0.0.1:{dead_port}"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    result = CliRunner().invoke(cli, ["doctor", *arguments, "--timeout", "0.3", "--json"])
    assert result.exit_code == 1
    found = {finding["check"]: finding["status"] for finding in json.loads(result.output)}
    assert found["broker"] == "problem"
    assert found["profile"] in ("ok", "warning")
    assert found["torch"] == found["data"] == found["state_dir"] == "ok"
