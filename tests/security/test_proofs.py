"""What `talaria-agent doctor` says of certificates and keys, before they fail."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fortress import Fortress

from edge_agent.doctor import broker
from edge_agent.proofs import look_at_proofs, running
from edge_agent.store import Store
from shared.config import AgentConfig
from shared.profiles import load_profile
from shared.settings import load_agent_config

NOW = datetime.now(UTC)


@pytest.fixture
def keys(tmp_path: Path) -> Fortress:
    return Fortress(tmp_path / "keys", "kitchen")


@pytest.fixture
def config(keys: Fortress, tmp_path: Path) -> AgentConfig:
    sets = [f'state_dir="{tmp_path / "state"}"']
    return load_agent_config(keys.folder / "devices/kitchen/agent.toml", sets).config


def test_what_enrol_made_is_fine(config):
    assert {status for status, _ in look_at_proofs(config)} == {"ok"}


@pytest.mark.parametrize(
    ("after", "status", "reason"),
    [
        (timedelta(days=710), "warning", "enrol --renew"),
        (timedelta(days=740), "problem", "enrol --renew"),
        (timedelta(days=-3), "problem", "the clock of this machine says"),
    ],
)
def test_certificates_and_clocks(config, after, status, reason):
    assert any(found == status and reason in text for found, text in look_at_proofs(config, NOW + after))


def test_files_that_others_read_or_that_are_gone(config, keys):
    config.broker.key_file.chmod(0o644)
    assert any(status == "warning" and "chmod 600" in text for status, text in look_at_proofs(config))
    config.coordinator_key.write_text("nonsense")
    assert any(status == "problem" and "coordinator.pub" in text for status, text in look_at_proofs(config))
    config.broker.key_file.unlink()
    assert any(status == "problem" and "kitchen.key" in text for status, text in look_at_proofs(config))


def test_protection_that_is_missing_is_named_where_it_matters():
    near = load_agent_config(None, ["device=a", "broker=mqtt://localhost:1"]).config
    assert list(look_at_proofs(near)) == []
    far = load_agent_config(None, ["device=a", "broker=mqtt://lab", "broker.plaintext=true"]).config
    said = [text for status, text in look_at_proofs(far) if status == "warning"]
    assert ["not encrypted" in said[0], "coordinator_key is not set" in said[1]] == [True, True]


async def test_a_running_agent_is_not_thrown_out_by_its_doctor(config):
    """The broker has one place for its certificate."""
    assert not running(config.state_dir)
    store = Store(config.state_dir)
    assert running(config.state_dir)
    assert "is not tried" in (await broker(config, load_profile("container"), 1.0)).detail
    store.close()
    assert not running(config.state_dir)
