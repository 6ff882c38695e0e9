"""The agent as a service: what its units say, and what installing them leaves on a system."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge_agent import service_command
from edge_agent.service import TIMER, UNIT, Layout, memory_max_mib, units
from edge_agent.service_command import install, uninstall
from shared.config import AgentConfig
from shared.config_base import BrokerSettings
from shared.errors import ConfigError
from shared.profiles import load_profile, profile_names

SYSTEMD = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")


def config(folder: Path, **changes: object) -> AgentConfig:
    """A device with everything that proves who it is."""
    files = {name: folder / f"{name}.pem" for name in ("ca_file", "cert_file", "key_file", "coordinator_key")}
    for path in files.values():
        path.write_text("x")
    key = files.pop("coordinator_key")
    broker = BrokerSettings(url="mqtts://broker.lan", **files)
    return AgentConfig(device="kitchen", profile="rpi-zero-2w", broker=broker, coordinator_key=key, **changes)


def settings(folder: Path, extra: str = "") -> Path:
    """The same as a file."""
    broker = config(folder).broker
    path = folder / "agent.toml"
    path.write_text(
        f'device = "kitchen"\nprofile = "ltem-sensor-node"\n{extra}\n[broker]\nurl = "{broker.url}"\n'
        f'ca_file = "{broker.ca_file}"\ncert_file = "{broker.cert_file}"\nkey_file = "{broker.key_file}"\n'
    )
    return path


@pytest.fixture
def installed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A root in which this interpreter's environment stands for version 0.1.0."""
    layout = Layout(tmp_path / "root")
    version = layout.home / "versions/0.1.0"
    (version / "bin").mkdir(parents=True)
    (version / "bin/talaria-agent").write_text("#!/bin/true\n")
    (version / "bin/talaria-agent").chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(version))
    return layout


def run(*arguments: object) -> str:
    done = CliRunner().invoke(
        install if arguments[0] == "install" else uninstall, [str(a) for a in arguments[1:]], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.output


@SYSTEMD
@pytest.mark.parametrize("wakes_every_s", [None, 900.0])
def test_systemd_takes_the_units_and_finds_little_exposed(tmp_path: Path, wakes_every_s: float | None) -> None:
    made = units(config(tmp_path, wakes_every_s=wakes_every_s), load_profile("rpi-zero-2w"), Layout())
    assert list(made) == ([UNIT] if wakes_every_s is None else [UNIT, TIMER])
    folder = tmp_path / "units"
    folder.mkdir()
    for name, text in made.items():
        (folder / name).write_text(text.replace("/opt/talaria/current/bin/talaria-agent", "/bin/true"))
    for name in made:
        done = subprocess.run(["systemd-analyze", "verify", folder / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert str(folder) not in done.stderr, done.stderr  # its warnings name the file
    exposure = ["systemd-analyze", "security", "--offline=true", "--threshold=20", folder / UNIT]  # 2.0 of 10
    done = subprocess.run(exposure, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@SYSTEMD
def test_the_coordinators_unit_is_as_closed(tmp_path: Path) -> None:
    unit = tmp_path / "talaria-coordinator.service"
    text = (Path(service_command.__file__).parents[1] / "coordinator" / unit.name).read_text()
    unit.write_text(text.replace("/opt/talaria/current/bin/talaria-coordinator", "/bin/true"))
    for command in ("verify",), ("security", "--offline=true", "--threshold=20"):
        done = subprocess.run(["systemd-analyze", *command, unit], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(unit) not in done.stderr, done.stderr


def test_every_profile_leaves_the_system_a_tenth_and_its_trainer_what_it_may_take() -> None:
    for name in profile_names():
        profile = load_profile(name)
        assert memory_max_mib(profile) <= 0.9 * profile.memory_mib
        if profile.training.enabled:
            assert memory_max_mib(profile) > profile.training.memory_mib


def test_settings_and_secrets_reach_the_agent_as_credentials_whoever_it_runs_as(tmp_path: Path) -> None:
    folder = tmp_path / "100%"
    folder.mkdir()
    text = units(config(folder), load_profile("rpi-4b"), Layout())[UNIT]
    for setting in ("broker.ca_file", "broker.cert_file", "broker.key_file", "coordinator_key"):
        assert f"--set {setting}=%d/{setting}" in text
    assert f"LoadCredential=broker.key_file:{tmp_path}/100%%/key_file.pem\n" in text
    assert "run -c %d/agent.toml" in text
    assert "LoadCredential=agent.toml:/etc/talaria/agent.toml\n" in text


def test_installing_twice_is_installing_once_and_uninstalling_leaves_what_is_the_owners(
    tmp_path: Path, installed_here: Layout
) -> None:
    layout, given = installed_here, settings(tmp_path)
    first = run("install", "-c", given, "--root", layout.root)
    assert (layout.home / "current").resolve() == layout.home / "versions/0.1.0"
    assert layout.config.read_text() == given.read_text()
    enabled = layout.units / "multi-user.target.wants" / UNIT
    assert enabled.is_symlink(), first
    before = (layout.units / UNIT).read_text()
    run("install", "-c", layout.config, "--root", layout.root)
    assert (layout.units / UNIT).read_text() == before
    layout.state.mkdir(parents=True)
    run("uninstall", "--root", layout.root)
    assert not enabled.is_symlink()
    assert not (layout.units / UNIT).exists()
    assert layout.config.exists()
    assert layout.state.exists()
    assert (layout.home / "current").exists()


def test_a_device_that_sleeps_is_started_by_a_timer_alone(tmp_path: Path, installed_here: Layout) -> None:
    layout = installed_here
    run("install", "-c", settings(tmp_path, "wakes_every_s = 60"), "--root", layout.root)
    assert "--until-idle" in (layout.units / UNIT).read_text()
    assert "StartLimitIntervalSec=600\nStartLimitBurst=15\n" in (layout.units / UNIT).read_text()
    assert (layout.units / "timers.target.wants" / TIMER).is_symlink()
    assert "WakeSystem" not in (layout.units / TIMER).read_text()
    (layout.root / "sys/class/rtc/rtc0/wakealarm").mkdir(parents=True)
    run("install", "-c", layout.config, "--root", layout.root)
    assert "WakeSystem=yes" in (layout.units / TIMER).read_text()
    assert not (layout.units / "multi-user.target.wants" / UNIT).is_symlink()
    run("install", "-c", settings(tmp_path), "--root", layout.root)  # and back
    assert not (layout.units / TIMER).exists()
    assert not (layout.units / "timers.target.wants" / TIMER).is_symlink()


def test_a_dry_run_writes_nothing(tmp_path: Path, installed_here: Layout) -> None:
    said = run("install", "-c", settings(tmp_path), "--root", installed_here.root, "--dry-run")
    assert "ExecStart=" in said
    assert not installed_here.units.exists()
    assert not installed_here.config.exists()


def test_what_would_only_fail_at_night_is_refused(
    tmp_path: Path, installed_here: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key := config(tmp_path).broker.key_file).unlink()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="there is no such file"):
        run("install", "-c", _without_key(tmp_path, key), "--root", installed_here.root)
    monkeypatch.setattr(sys, "prefix", "/usr")
    with pytest.raises(ConfigError, match="runs from /usr"):
        run("install", "-c", settings(tmp_path), "--root", installed_here.root)


def _without_key(folder: Path, key: Path | None) -> Path:
    path = settings(folder)
    assert key is not None
    key.unlink()
    return path


def test_a_torch_that_was_built_for_another_processor_is_refused_with_the_pins(
    tmp_path: Path, installed_here: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe imports it in a process of its own; here that process meets a torch that does what a wheel for
    another processor does."""
    wrong = tmp_path / "wrong" / "torch"
    wrong.mkdir(parents=True)
    (wrong / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.setenv("PYTHONPATH", str(wrong.parent))
    given = settings(tmp_path)
    given.write_text(given.read_text().replace("ltem-sensor-node", "rpi-4b"))
    with pytest.raises(ConfigError, match=r"illegal instruction.*torch.*2\.9"):
        run("install", "-c", given, "--root", installed_here.root)
    assert not installed_here.units.exists()
    assert service_command.running(installed_here) is False
