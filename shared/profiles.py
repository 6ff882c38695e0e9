"""Firmware profiles: what one class of hardware can do, read from firmware_profiles/*.toml."""

from functools import cache
from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.errors import ConfigError
from shared.plugins import nearest
from shared.toml import bundled, bundled_names, read_toml
from shared.validation import validate

Isa: TypeAlias = Literal["x86-64-avx2", "x86-64-vnni", "armv7", "armv8.0", "armv8.2-dotprod"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Training(Section):
    enabled: bool = Field(True, description="false: this class of device only infers")
    threads: int = Field(1, ge=1, description="compute threads of the trainer")
    batch_size: int = Field(32, ge=1, description="upper bound of the local batch")
    memory_mib: int = Field(
        512,
        ge=0,
        description="memory that a round may allocate beyond the loaded training library; more, and the round fails",
    )
    max_width: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of each layer's channels with which a device starts at most, where the algorithm prunes; "
        "less, where a trial step shows that memory_mib needs it",
    )
    keep_warm: bool = Field(True, description="keep the training library loaded between rounds (about 220 MB)")


class Link(Section):
    """What kind of link it is decides how payloads are encoded on it (shared.encoding)."""

    kind: Literal["loopback", "ethernet", "wifi", "lte", "lte-m", "nb-iot"] = "ethernet"
    max_packet: int = Field(122_880, ge=1024, description="bytes of the largest MQTT packet that the device handles")
    daily_mib: float | None = Field(
        None,
        gt=0,
        description="budget of a metered link, both ways, per UTC day: a task whose download does not fit the rest is "
        "refused; what is finished is still delivered",
    )


class Inference(Section):
    providers: tuple[str, ...] = Field(
        ("CPUExecutionProvider",), min_length=1, description="ordered; first available wins"
    )
    threads: int = Field(1, ge=1, description="threads of one inference")
    dtype: Literal["float32", "int8"] = Field(
        "float32", description="int8: quantize the exported model where it stays as good, by the device's own data"
    )
    channel_multiple: int = Field(
        8, ge=1, description="kept channels are rounded up to this: what the runtime's kernels like"
    )

    @model_validator(mode="after")
    def _fallback(self) -> Self:
        if self.providers[-1] != "CPUExecutionProvider":
            raise ValueError("the last of inference.providers must be CPUExecutionProvider, which is always there")
        return self


class Health(Section):
    """Training is refused beyond these. After a refusal for heat or charge it is allowed again from the resume value
    on. What cannot be read is no reason."""

    max_temperature_c: float = Field(80, description="hottest thermal zone")
    resume_temperature_c: float = Field(70, description="training is allowed again at this and below")
    min_battery_pct: float = Field(0, ge=0, le=100, description="lowest charge at which it trains while not on mains")
    resume_battery_pct: float = Field(
        0, ge=0, le=100, description="training is allowed again from this charge on; min_battery_pct if that is more"
    )
    max_load_per_core: float = Field(4.0, gt=0, description="one-minute load average per core, without our own trainer")
    min_available_mib: int = Field(64, ge=0, description="memory that must be available beside the trainer's budget")

    @model_validator(mode="after")
    def _hysteresis(self) -> Self:
        if self.resume_temperature_c > self.max_temperature_c:
            raise ValueError("resume_temperature_c must not exceed max_temperature_c")
        return self


class Profile(Section):
    """One class of hardware. `id` is the file's name."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    title: str
    known_as: tuple[str, ...] = Field(
        (),
        description="how a machine of this class names itself: the beginning of its device tree's model, or `android` "
        "or `container`; the doctor proposes the profile by it",
    )
    sources: tuple[str, ...] = Field(
        (), description="where the values come from; `estimate` where they were not measured"
    )
    isa: Isa = Field(
        "x86-64-avx2", description="instruction set: which variant of int8 neither saturates nor runs slowly"
    )
    cores: int = Field(ge=1, description="cores of the whole device")
    memory_mib: int = Field(ge=1, description="memory of the whole device")
    training: Training = Training()
    link: Link = Link()
    inference: Inference = Inference()
    health: Health = Health()

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.training.enabled and self.isa == "armv7":
            raise ValueError("isa armv7 has no torch: set training.enabled = false")
        if self.training.enabled and not 0 < self.training.memory_mib <= 0.9 * self.memory_mib:
            raise ValueError(
                f"training.memory_mib {self.training.memory_mib} must be above 0 and leave a tenth of memory_mib "
                f"{self.memory_mib} to the system"
            )
        for name, threads in (("training", self.training.threads), ("inference", self.inference.threads)):
            if threads > self.cores:
                raise ValueError(f"{name}.threads {threads} is more than the {self.cores} cores")
        return self


def profile_names() -> list[str]:
    """Names of the profiles that come with the package, sorted."""
    return bundled_names("firmware_profiles")


def load_profile(name: str) -> Profile:
    """The profile of that name, or of the TOML file at that path. ConfigError names what is wrong with it."""
    known = profile_names()
    if name in known:
        return _bundled(name)
    if name.endswith(".toml"):
        return validate(Profile, read_toml(Path(name)), source=name)
    raise ConfigError(
        f"unknown profile {name!r}{nearest(name, known)}; use one of {', '.join(known)}, or a path to a .toml file"
    )


@cache  # a large emulated fleet asks for the same few, hundreds of times
def _bundled(name: str) -> Profile:
    path = bundled("firmware_profiles", name)
    return validate(Profile, read_toml(path), source=str(path))
