"""Who is in an emulated fleet: one AgentConfig per device, profiles dealt out in turn, the data divided."""

import os
from pathlib import Path

from shared.config import AgentConfig, RunConfig
from shared.config_base import BrokerSettings
from shared.profiles import load_profile


def emulated_devices(
    config: RunConfig, directory: Path, broker: BrokerSettings | None = None
) -> dict[str, AgentConfig]:
    """Device name -> its settings, in order. Each device's state lies below `directory`/devices/<name>.

    broker: the way to the broker, once it is known.

    A device's name is its profile and its number. Threads are limited to its share of this machine's cores: emulated
    devices compete for cores, and a trainer with more threads than cores of its own only waits.
    """
    count = config.fleet.devices
    share = max(1, (os.cpu_count() or 1) // count)
    devices = {}
    for index in range(count):
        profile = config.fleet.profiles[index % len(config.fleet.profiles)]
        name = f"{Path(profile).stem}-{index:02d}"
        partition = config.data.partition.model_copy(update={"devices": count, "index": index})
        devices[name] = AgentConfig(
            device=name,
            fleet=config.run.fleet,
            profile=profile,
            threads=min(share, load_profile(profile).training.threads),
            state_dir=directory / "devices" / name / "state",
            health=False,
            trust=tuple(given for given in (config.model.name, config.algorithm.name) if ":" in given),
            broker=broker or BrokerSettings(url="mqtt://localhost"),
            data=config.data.model_copy(update={"partition": partition}),
            stall_s=config.transfer.stall_s,
        )
    return devices
