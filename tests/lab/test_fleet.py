"""The settings of an emulated fleet."""

from pathlib import Path

from lab import fleet
from shared.config import FleetSettings, ModelSettings, RunConfig
from shared.config_base import BrokerSettings
from shared.config_data import DataSettings, PartitionSettings

PARTITION = PartitionSettings(kind="dirichlet", alpha=0.3)


def config(devices: int = 5, **changes: object) -> RunConfig:
    settings = {
        "fleet": FleetSettings(devices=devices, profiles=("rpi-4b", "rpi-5")),
        "data": DataSettings(partition=PARTITION),
    }
    return RunConfig.model_validate({**settings, **changes})


def test_every_device_has_its_own_name_state_and_part_of_the_data(tmp_path: Path) -> None:
    devices = fleet.emulated_devices(config(), tmp_path)
    assert list(devices) == ["rpi-4b-00", "rpi-5-01", "rpi-4b-02", "rpi-5-03", "rpi-4b-04"]
    assert len({agent.state_dir for agent in devices.values()}) == 5
    assert [agent.data.partition.index for agent in devices.values()] == list(range(5))
    assert {agent.data.partition.devices for agent in devices.values()} == {5}


def test_profiles_are_dealt_out_in_turn(tmp_path: Path) -> None:
    devices = fleet.emulated_devices(config(), tmp_path)
    assert [agent.profile for agent in devices.values()] == ["rpi-4b", "rpi-5", "rpi-4b", "rpi-5", "rpi-4b"]


def test_many_devices_share_the_cores(tmp_path: Path) -> None:
    assert {agent.threads for agent in fleet.emulated_devices(config(64), tmp_path).values()} == {1}


def test_only_what_the_run_names_is_trusted(tmp_path: Path) -> None:
    plain = fleet.emulated_devices(config(1), tmp_path)
    own = fleet.emulated_devices(config(1, model=ModelSettings(name="my.models:net")), tmp_path)
    assert next(iter(plain.values())).trust == ()
    assert next(iter(own.values())).trust == ("my.models:net",)


def test_the_broker_is_passed_on(tmp_path: Path) -> None:
    broker = BrokerSettings(url="mqtt://127.0.0.1:4711")
    assert {agent.broker for agent in fleet.emulated_devices(config(), tmp_path, broker).values()} == {broker}
