"""All settings, as pydantic models: RunConfig for the coordinator and the lab, AgentConfig for one device.

Read from TOML by shared.settings, which answers unknown keys, wrong types and impossible combinations. Every field's
description is what `config show` and the documented example print: one place for each fact.
"""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from shared.errors import ConfigError
from shared.messages import Hyperparameter
from shared.profiles import load_profile
from shared.topics import check_name


def _topic_name(name: str) -> str:
    try:
        return check_name("name", name)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _known_profile(name: str) -> str:
    try:
        load_profile(name)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return name


TopicName = Annotated[str, AfterValidator(_topic_name)]
ProfileName = Annotated[str, AfterValidator(_known_profile)]
FilePath = Annotated[Path, AfterValidator(Path.expanduser)]
"""Relative to the working directory, wherever the configuration file lies; `~` is the home directory."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BrokerSettings(Settings):
    """The way to the broker."""

    url: str = Field(
        "embedded",
        description="`embedded` starts a Mosquitto as a child process; otherwise mqtt://host[:port] or mqtts://host[:port]",
    )
    username: str | None = Field(None, description="user name, where the broker asks for one", examples=["talaria"])
    password_file: FilePath | None = Field(
        None,
        description="file whose first line is the password; never the password itself",
        examples=["/etc/talaria/password"],
    )
    ca_file: FilePath | None = Field(
        None,
        description="PEM file of the authority that signed the broker's certificate",
        examples=["/etc/talaria/ca.pem"],
    )
    cert_file: FilePath | None = Field(
        None, description="PEM file of our own certificate", examples=["/etc/talaria/client.pem"]
    )
    key_file: FilePath | None = Field(
        None, description="PEM file of our own private key", examples=["/etc/talaria/client.key"]
    )
    keepalive_s: int = Field(60, ge=5, le=3600, description="seconds of silence after which the connection is probed")

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if url == "embedded":
            return url
        parts = urlsplit(url)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ValueError(f"{url!r} is neither 'embedded' nor mqtt://host[:port] nor mqtts://host[:port]")
        if parts.username or parts.password:
            raise ValueError("user and password do not belong into the URL; use username and password_file")
        return url

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: give both or neither")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file needs username")
        if not self.url.startswith("mqtts:") and (self.ca_file or self.cert_file):
            raise ValueError("certificates need an mqtts:// url")
        return self


class RunSettings(Settings):
    """What is run, and where its state lies."""

    fleet: TopicName = Field("talaria", description="first level of every topic: devices of other fleets are not seen")
    seed: int = Field(
        0, ge=0, lt=2**63, description="seed of model initialization, cohort selection and local training"
    )
    directory: FilePath = Field(Path("runs"), description="each run gets a folder in here: state, journal, report")


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


class RoundSettings(Settings):
    """How rounds are opened and closed."""

    count: int = Field(10, ge=1, le=1_000_000, description="rounds to run")
    cohort: int | None = Field(
        None, ge=1, description="devices asked per round; without it, every device that is ready", examples=[10]
    )
    quorum: int = Field(2, ge=1, description="updates without which a round is not closed but asked again")
    min_devices: int = Field(2, ge=1, description="devices that must be ready before a round is opened")
    deadline_s: float = Field(600.0, gt=0, description="seconds after which a round closes with what has arrived")
    personalize_deadline_s: float = Field(600.0, gt=0, description="the same for the personalization at the end")
    evaluate_every: int = Field(
        1, ge=1, description="rounds from one evaluation on the test splits to the next; the first and the end have one"
    )

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.cohort is not None and self.quorum > self.cohort:
            raise ValueError(f"quorum {self.quorum} can never be met by a cohort of {self.cohort}: raise cohort")
        if self.cohort is None and self.quorum > self.min_devices:
            raise ValueError(
                f"quorum {self.quorum} can never be met when a round may open with {self.min_devices} devices: "
                "raise min_devices"
            )
        if self.cohort is not None and self.min_devices < self.quorum:
            raise ValueError(f"min_devices {self.min_devices} is less than quorum {self.quorum}: raise it")
        return self


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


class PartitionSettings(Settings):
    """How a data set is divided over emulated devices. Real devices have their own data: kind `whole`."""

    kind: Literal["whole", "iid", "dirichlet", "classes", "natural"] = Field(
        "whole",
        description="all of it, evenly, by label skew (`alpha`), `classes` classes each, or by its natural owners",
    )
    devices: int = Field(1, ge=1, description="parts")
    index: int = Field(0, ge=0, description="which part is ours")
    alpha: float = Field(0.3, gt=0, description="concentration of the Dirichlet distribution: small is skewed")
    classes: int = Field(2, ge=1, description="classes per device, with kind `classes`")
    min_examples: int = Field(10, ge=1, description="a part with fewer is drawn again")
    seed: int = Field(0, ge=0, description="seed of the partition: the same on every device")

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.index >= self.devices:
            raise ValueError(f"index {self.index} is not one of {self.devices} devices (0 to {self.devices - 1})")
        return self


class DataSettings(Settings):
    """What a device learns from. It never leaves the device."""

    source: str = Field(
        "digits",
        description="digits, mnist, fashion-mnist, cifar10, npz, images, csv, or package.module:callable",
    )
    path: FilePath | None = Field(
        None,
        description="file or folder of the source; a relative one is also looked for below TALARIA_DATA; {index} or "
        "{index:02d} in it stands for data.partition.index",
        examples=["mnist-dirichlet-20/client-{index:02d}.npz"],
    )
    options: dict[str, Hyperparameter] = Field(default_factory=dict, description="keyword arguments of the source")
    mean: tuple[float, ...] | None = Field(
        None,
        description="subtracted from raw inputs, one value or one per channel; without it, as docs/data.md says",
        examples=[[127.5]],
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="what they are then divided by, one value or one per channel", examples=[[127.5]]
    )
    partition: PartitionSettings = PartitionSettings()
    validation: float = Field(0.15, gt=0, lt=1, description="share of the examples that every decision is taken on")
    test: float = Field(0.2, gt=0, lt=1, description="share held out for evaluation, unless the source has its own")
    max_per_class: int | None = Field(
        None,
        ge=1,
        description="at most so many training examples of each class: emulates a device that has seen little",
        examples=[20],
    )
    seed: int = Field(0, ge=0, description="seed of the split")

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing to train on")
        if (self.mean is None) != (self.std is None) or (self.mean and self.std and len(self.mean) != len(self.std)):
            raise ValueError("mean and std belong together: give both, of the same length, or neither")
        return self


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
        description="refuse to train beyond the profile's limits of heat, charge, load and memory; false for devices "
        "that are emulated on one machine, whose load is not theirs",
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
