"""All settings, as pydantic models: RunConfig for the coordinator and the lab, AgentConfig for one device.

Read from TOML by shared.settings, which answers unknown keys, wrong types and impossible combinations. Every field's
description is what `config show` and the documented example print: one place for each fact.
"""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shared.config_base import BrokerSettings, FilePath, ProfileName, Settings, TopicName
from shared.config_data import DataSettings
from shared.config_rounds import AdmissionSettings, AggregationSettings, RoundSettings
from shared.messages import Hyperparameter


class RunSettings(Settings):
    """What is run, and where its state lies."""

    fleet: TopicName = Field("talaria", description="first level of every topic: devices of other fleets are not seen")
    seed: int = Field(
        0, ge=0, lt=2**63, description="seed of model initialization, cohort selection and local training"
    )
    directory: FilePath = Field(Path("runs"), description="each run gets a folder in here: state, journal, report")
    signing_key: FilePath | None = Field(
        None,
        description="private key that signs what devices are told; `talaria-coordinator enrol` makes one",
        examples=["/etc/talaria/signing.key"],
    )
    keep_updates: bool = Field(
        False,
        description="keep every accepted update and every round's global tensors, so that `talaria-coordinator audit` "
        "can recompute each aggregate; they take much disk",
    )
    http: str | None = Field(
        None,
        description="host:port at which the coordinator answers /metrics (Prometheus) and /health",
        examples=["127.0.0.1:9464"],
    )

    @field_validator("http")
    @classmethod
    def _an_address(cls, http: str | None) -> str | None:
        if http is not None:
            try:
                parts = urlsplit(f"//{http}")
                fits = bool(parts.hostname and parts.port) and parts.netloc == http and "@" not in http
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(f"{http!r} is not host:port: for example 127.0.0.1:9464, or [::1]:9464")
        return http


class ModelSettings(Settings):
    """The network that is trained."""

    name: str = Field("digitscnn", description="a model of the zoo, or package.module:callable")
    options: dict[str, Hyperparameter] = Field(
        default_factory=dict, description="keyword arguments of the model, for example classes = 10"
    )
    initial: FilePath | None = Field(
        None,
        description="payload file with the complete state that the run starts from, in place of what the seed draws: "
        "`talaria-coordinator export --format payload` writes one; it is copied into the run's folder",
        examples=["fedavg.payload"],
    )


class AlgorithmSettings(BaseModel):
    """The algorithm's name; every other key is one of its hyperparameters, checked against the algorithm itself."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Hyperparameter]

    name: str = Field("hermes", description="one of the algorithms, or package.module:ALGORITHM")

    @property
    def hyperparameters(self) -> dict[str, Hyperparameter]:
        return dict(self.model_extra or {})


class TransferSettings(Settings):
    """How payloads are encoded, and bounds of what is in flight."""

    encoding: Literal["link", "float32", "float16", "int8", "topk"] = Field(
        "link",
        description="of payloads, both ways: `link` leaves it to each device's profile; a name asks all devices for it "
        "(`topk` is for updates, downloads are then `int8`); a device that cannot read it is sent float32",
    )

    window: int = Field(16, ge=1, le=256, description="chunks that one device may have under way")
    granted_mib: float = Field(32.0, gt=0, description="bytes granted to all devices together at any time, MiB")
    stall_s: float = Field(
        10.0, gt=0, description="seconds without progress after which missing chunks are asked for again"
    )


class FleetSettings(Settings):
    """The emulated fleet of `talaria-lab`."""

    devices: int = Field(8, ge=1, le=100_000, description="emulated devices")
    profiles: tuple[ProfileName, ...] = Field(("container",), min_length=1, description="profiles, dealt out in turn")


class RunConfig(Settings):
    """One run: read by `talaria-coordinator` and `talaria-lab`. [data] and [fleet] concern emulated devices only."""

    run: RunSettings = RunSettings()
    broker: BrokerSettings = BrokerSettings()
    model: ModelSettings = ModelSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    rounds: RoundSettings = RoundSettings()
    aggregation: AggregationSettings = AggregationSettings()
    admission: AdmissionSettings = AdmissionSettings()
    transfer: TransferSettings = TransferSettings()
    data: DataSettings = DataSettings()
    fleet: FleetSettings = FleetSettings()

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        parts = self.data.partition.devices
        if parts not in (1, self.fleet.devices):
            raise ValueError(
                f"data.partition.devices {parts} contradicts fleet.devices {self.fleet.devices}: leave the first out, "
                "an emulated fleet has as many parts as devices"
            )
        return self


class AgentConfig(Settings):
    """One device: read by `talaria-agent`."""

    device: TopicName = Field(description="this device's name: unique in its fleet")
    fleet: TopicName = Field("talaria", description="the fleet it belongs to")
    profile: ProfileName = Field("container", description="firmware profile: a name, or a path to a TOML file")
    threads: int | None = Field(
        None, ge=1, description="compute threads, where the profile's are not wanted", examples=[2]
    )
    state_dir: FilePath = Field(Path("talaria-state"), description="what the device remembers; must survive a reboot")
    trust: tuple[str, ...] = Field(
        (), description="package.module:name of models and algorithms that a coordinator may ask this device to import"
    )
    health: bool = Field(
        True,
        description="refuse to train beyond the profile's limits of heat, charge, load, memory and bytes per day; "
        "false for devices that are emulated on one machine, whose load and day are not theirs",
    )
    coordinator_key: FilePath | None = Field(
        None,
        description="file with the public keys of coordinators, one per line: what none of them has signed is ignored",
        examples=["/etc/talaria/coordinator.pub"],
    )
    wakes_every_s: float | None = Field(
        None,
        gt=0,
        le=31_536_000,
        description="seconds from one awakening of this device to the next, where it sleeps in between: it says so "
        "when it leaves, and rounds wait for it",
        examples=[3600.0],
    )
    vitals_s: float = Field(
        60.0, ge=1, description="seconds from one publication of the device's vital signs to the next"
    )
    broker: BrokerSettings = BrokerSettings(url="mqtt://localhost")
    data: DataSettings = DataSettings()
    stall_s: float = Field(
        10.0, gt=0, description="seconds without progress after which missing chunks are asked for again"
    )

    @field_validator("broker")
    @classmethod
    def _real_broker(cls, broker: BrokerSettings) -> BrokerSettings:
        if broker.url == "embedded":
            raise ValueError("the embedded broker belongs to the coordinator: give its mqtt:// url here")
        return broker
