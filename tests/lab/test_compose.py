"""A fleet as containers: what is written, before any container runs (tests/containers runs them)."""

import stat
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge_agent.data.load import load
from lab.cli import cli
from lab.compose import DIGITS, compose_file, cpus
from shared.errors import ConfigError
from shared.profiles import load_profile, profile_names
from shared.settings import bundled_config, load_agent_config, load_run_config

REPOSITORY = Path(__file__).parents[2]


def write(folder: Path, *sets: str) -> None:
    arguments = ["compose", str(folder), *(part for text in sets for part in ("--set", text))]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_the_compose_file_in_the_repository_is_that_of_the_demo() -> None:
    config = load_run_config(bundled_config("demo")).config
    assert (REPOSITORY / "docker/compose.yaml").read_text() == compose_file(config), "run: talaria-lab compose docker"


def test_limits_are_those_of_the_profiles_and_no_more_cores_than_a_small_machine_has() -> None:
    for name in profile_names():
        text = compose_file(load_run_config(None, [f'fleet.profiles=["{name}"]', "fleet.devices=1"]).config)
        profile = load_profile(name)
        assert f"    mem_limit: {profile.memory_mib}m\n    memswap_limit: {profile.memory_mib}m\n" in text
        assert f"    cpus: {cpus(profile):g}\n" in text
        assert 0 < cpus(profile) <= 2


def test_every_container_finds_settings_that_its_program_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "fleet.devices=2")
    keys = tmp_path / "fleet/keys"
    names = [path.name for path in sorted((keys / "devices").iterdir())]
    assert names == ["rpi-4b-01", "rpi-zero-2w-00"]
    (tmp_path / "fleet/data" / DIGITS).rename(tmp_path / DIGITS)
    seen = set()
    for name in names:
        config = load_agent_config(keys / "devices" / name / "agent.toml").config
        assert config.device == name
        files = (config.broker.ca_file, config.broker.cert_file, config.broker.key_file, config.coordinator_key)
        assert all(file and (keys / "devices" / name / file.name).is_file() for file in files)
        assert config.data.path == Path("/data") / DIGITS
        data = load(config.data.model_copy(update={"path": tmp_path / DIGITS}))
        seen.add(data.train.inputs.tobytes())
    assert len(seen) == 2, "each device has its own part of the data"
    run = load_run_config(keys / "coordinator/run.toml").config
    assert run.broker.url.startswith("mqtts://")
    assert run.run.signing_key
    assert (keys / "coordinator" / run.run.signing_key.name).is_file()
    tomllib.loads((keys / "coordinator/run.toml").read_text())


def test_keys_are_closed_to_others_on_this_machine_and_open_in_the_containers(tmp_path: Path) -> None:
    write(tmp_path, "fleet.devices=1")
    fleet = tmp_path / "fleet"
    assert stat.S_IMODE(fleet.stat().st_mode) == 0o700
    assert stat.S_IMODE((fleet / "keys/ca.key").stat().st_mode) == 0o600
    for path in (fleet / "keys/devices").rglob("*"):
        assert path.stat().st_mode & stat.S_IROTH, path


def test_again_it_is_the_same_keys_with_the_settings_of_now(tmp_path: Path) -> None:
    write(tmp_path, "fleet.devices=1", "rounds.count=2")
    keys = tmp_path / "fleet/keys"
    before = (keys / "devices/rpi-zero-2w-00/rpi-zero-2w-00.key").read_bytes()
    write(tmp_path, "fleet.devices=2", "rounds.count=3")
    assert (keys / "devices/rpi-zero-2w-00/rpi-zero-2w-00.key").read_bytes() == before
    assert load_run_config(keys / "coordinator/run.toml").config.rounds.count == 3
    assert (keys / "devices/rpi-4b-01").is_dir()
    with pytest.raises(ConfigError, match="authority of fleet"):
        write(tmp_path, "run.fleet=another")


def test_data_of_ones_own_are_mounted_from_where_they_are() -> None:
    text = compose_file(load_run_config(None, ["data.source=npz", "data.path=x.npz"]).config)
    assert "${TALARIA_DATA:?" in text
    assert "fleet/data" not in text
