"""A fleet as containers: a compose file whose limits are those of the firmware profiles, and the folder that it mounts.

compose.yaml       broker, coordinator, one service per device; pure text of the configuration (`compose_file`)
fleet/keys/        an authority (coordinator.authority) with everybody's certificates and settings
fleet/data/        what devices read as /data
"""

import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from coordinator.acl import Role
from coordinator.authority import Authority
from edge_agent.data.sources import installed_digits
from lab.fleet import emulated_devices
from shared.config import AgentConfig, RunConfig
from shared.config_base import BrokerSettings
from shared.profiles import Profile, load_profile
from shared.settings import example_toml

CORE = 0.25
"""What of a core of this machine stands for one of a device's: boards are slower, and a container must not be allowed
more cores than there are, which Docker refuses. With it the boards with four cores run where there is one."""
BROKER, PORT = "broker", 8883
HTTP_PORT = 9464
SETTINGS = PurePosixPath("/etc/talaria")
"""Where each container has its certificate and settings."""
STATE = PurePosixPath("/var/lib/talaria")
"""A volume of its own in each container; everything else is read-only."""
DATA = PurePosixPath("/data")
DIGITS = "digits.csv.gz"

HEAD = """\
# Made by `talaria-lab compose`, which also makes what it mounts (fleet/): change the configuration, not this file.
# docs/deploy.md says how the images are built. Limits of memory and cores are those of the firmware profiles.
name: talaria-{fleet}

x-closed: &closed
  read_only: true
  tmpfs: ["/tmp:size=64m"]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  ulimits: {{nofile: 1024, nproc: 4096}}
  pids_limit: 256
  restart: on-failure

services:
  {broker}:
    <<: *closed
    image: talaria-broker
    hostname: {broker}
    mem_limit: 256m
    cpus: 0.5
    volumes: ["./fleet/keys/broker:{settings}:ro", "broker:{settings}/data"]

  coordinator:
    <<: *closed
    image: talaria-coordinator
    hostname: coordinator
    mem_limit: 2048m
    cpus: 1
    command: [run, -c, {settings}/run.toml, --run-dir, {state}/run, --log-format, json]
    ports: ["127.0.0.1:{port}:{port}"]
    volumes: ["./fleet/keys/coordinator:{settings}", "coordinator:{state}"]
    healthcheck:
      test: [CMD, python3, -c, "import urllib.request as r; r.urlopen('http://127.0.0.1:{port}/health', timeout=5)"]
      interval: 30s
      timeout: 10s
      start_period: 60s
"""
DEVICE = """
  {name}:  # {title}
    <<: *closed
    image: talaria-agent
    hostname: {name}
    mem_limit: {memory}m
    memswap_limit: {memory}m
    cpus: {cpus:g}
    command: [run, -c, {settings}/agent.toml, --once]
    environment: {{TALARIA_DATA: {data}}}
    volumes: ["./fleet/keys/devices/{name}:{settings}:ro", "{source}:{data}:ro", "{name}:{state}"]
"""


def compose_file(config: RunConfig) -> str:
    """The compose file of the configuration's emulated fleet."""
    devices = emulated_devices(config, Path())
    places = {"settings": SETTINGS, "state": STATE, "data": DATA}
    text = HEAD.format(fleet=config.run.fleet, broker=BROKER, port=HTTP_PORT, **places)
    source = "./fleet/data" if _own_digits(config) else "${TALARIA_DATA:?the folder with the data sets}"
    for name, agent in devices.items():
        profile = load_profile(agent.profile)
        text += DEVICE.format(
            name=name,
            title=profile.title.partition(":")[0],
            memory=profile.memory_mib,
            cpus=cpus(profile),
            source=source,
            **places,
        )
    volumes = "".join(f"  {name}: {{}}\n" for name in (BROKER, "coordinator", *devices))
    return f"{text}\nvolumes:\n{volumes}"


def cpus(profile: Profile) -> float:
    """Cores of this machine that a device of the profile gets."""
    return max(profile.cores * CORE, 0.25)


def write_fleet(config: RunConfig, directory: Path) -> None:
    """The compose file and what it mounts. Again in the same folder: the same keys, the settings of now.

    ConfigError for another fleet than the one whose keys are there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    fleet = directory / "fleet"
    fleet.mkdir(exist_ok=True, mode=0o700)
    devices = emulated_devices(config, Path())
    with Authority.open(
        fleet / "keys", fleet=config.run.fleet, hosts=[BROKER], port=PORT, installed=str(SETTINGS)
    ) as authority:
        for name, agent in devices.items():
            place = authority.enrol(Role.DEVICE, name)
            (place / "agent.toml").write_text(example_toml(_in_container(agent, config)))
        (authority.place("coordinator") / "run.toml").write_text(example_toml(_run(config)))
    if _own_digits(config):
        (fleet / "data").mkdir(exist_ok=True)
        shutil.copyfile(installed_digits(), fleet / "data" / DIGITS)
    _open(fleet)
    (directory / "compose.yaml").write_text(compose_file(config))


def _own_digits(config: RunConfig) -> bool:
    """Whether the data are scikit-learn's digits, which the images lack and the fleet's folder gets."""
    return config.data.source == "digits" and config.data.path is None


def _in_container(agent: AgentConfig, config: RunConfig) -> AgentConfig:
    profile = load_profile(agent.profile)
    changes: Mapping[str, object] = {
        "state_dir": Path(STATE / "agent"),
        "broker": _broker(agent.device),
        "coordinator_key": Path(SETTINGS / "coordinator.pub"),
        "threads": min(profile.training.threads, max(1, int(cpus(profile)))),
    }
    if _own_digits(config):
        changes = {**changes, "data": agent.data.model_copy(update={"path": Path(DATA / DIGITS)})}
    return agent.model_copy(update=changes)


def _run(config: RunConfig) -> RunConfig:
    run = config.run.model_copy(
        update={"signing_key": Path(SETTINGS / "signing.key"), "http": f"0.0.0.0:{HTTP_PORT}", "directory": Path(STATE)}
    )
    return config.model_copy(update={"run": run, "broker": _broker("coordinator")})


def _broker(name: str) -> BrokerSettings:
    return BrokerSettings(
        url=f"mqtts://{BROKER}:{PORT}",
        ca_file=Path(SETTINGS / "ca.pem"),
        cert_file=Path(SETTINGS / f"{name}.pem"),
        key_file=Path(SETTINGS / f"{name}.key"),
    )


def _open(fleet: Path) -> None:
    """Let the users of the containers, who are others than ours, read what is mounted; the signer keeps a mark beside
    its key. On this machine the folder around it all is closed to everybody else."""
    for path in (fleet / "keys").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for private in ("ca.key", "authority.json", "lock"):
        (fleet / "keys" / private).chmod(0o600)
    (fleet / "keys").chmod(0o755)
    (fleet / "keys" / "coordinator").chmod(0o777)
