"""What the round engine is told, what it answers, and what a checkpoint keeps of it."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from coordinator.cohort import Turns
from shared.messages import Capabilities

Action: TypeAlias = Literal["train", "personalize"]

# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceOnline:
    """Also said again when the capabilities change."""

    device: str
    capabilities: Capabilities | None


@dataclass(frozen=True)
class DeviceOffline:
    device: str


@dataclass(frozen=True)
class DeviceAsleep:
    """The device left on purpose, and means to be back in so many seconds."""

    device: str
    seconds: float


@dataclass(frozen=True)
class Quarantined:
    """Nothing is asked of the device, nor taken from it, until it is released. Said again after every start."""

    device: str


@dataclass(frozen=True)
class Released:
    """The device's quarantine is over."""

    device: str


@dataclass(frozen=True)
class UpdateAccepted:
    """A welcome update has been admitted and is on disk. `round`: the one that it started from."""

    device: str
    round: int


@dataclass(frozen=True)
class DeviceFailed:
    """The device said that it cannot finish, or what it sent was refused."""

    device: str
    round: int
    code: str


@dataclass(frozen=True)
class Reported:
    """A welcome report of a personalized device is on disk."""

    device: str
    round: int


@dataclass(frozen=True)
class Prepared:
    """The run's ONNX template is in its folder, or it is certain that there will be none."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event: TypeAlias = (
    DeviceOnline
    | DeviceOffline
    | DeviceAsleep
    | Quarantined
    | Released
    | UpdateAccepted
    | DeviceFailed
    | Reported
    | Prepared
    | Tick
)

# --- commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenRound:
    """Ask the cohort. attempt > 1: the same round again; updates that were accepted before stay accepted."""

    number: int
    attempt: int
    cohort: tuple[str, ...]


@dataclass(frozen=True)
class AskDevices:
    """These begin with the open round's tensors, while others are still at work."""

    number: int
    devices: tuple[str, ...]


@dataclass(frozen=True)
class CloseRound:
    """Make the accepted updates the new global tensors."""

    number: int
    attempts: int


@dataclass(frozen=True)
class AbandonRound:
    """This attempt is over without a quorum; nothing is lost, the round will be asked again."""

    number: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class OpenPersonalization:
    """All rounds are closed: every known device, online or not, makes the final model its own. `number` is the last
    round's plus one."""

    number: int


@dataclass(frozen=True)
class Finish:
    """The run is over. Of the known devices, `absent` are those from which nothing came in the personalization."""

    reported: tuple[str, ...]
    failed: tuple[str, ...]
    absent: tuple[str, ...]


Command: TypeAlias = OpenRound | AskDevices | CloseRound | AbandonRound | OpenPersonalization | Finish


class Phase(StrEnum):
    GATHERING = "gathering"
    COLLECTING = "collecting"
    PERSONALIZING = "personalizing"
    FINISHED = "finished"


class Verdict(StrEnum):
    """Whether an offer, a failure or a report is welcome; every value but WELCOME and DUPLICATE is a rejection code."""

    WELCOME = "welcome"
    DUPLICATE = "duplicate"
    """It was accepted before: the receipt got lost, so it is given again."""
    FOREIGN_RUN = "foreign_run"
    STALE = "stale"
    FUTURE = "future"
    NOT_IN_COHORT = "not_in_cohort"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint keeps of the engine. Who is online is not in it: presence is retained at the broker.

    asked     device -> the round that what it was asked for starts from
    known     devices that could train at some time of the run
    answered  device -> the last round that it answered, or started from, with an update or a report
    """

    phase: Phase = Phase.GATHERING
    closed: int = 0
    attempt: int = 0
    cohort: tuple[str, ...] = ()
    asked: dict[str, int] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    answered: dict[str, int] = field(default_factory=dict)
    turns: dict[str, Turns] = field(default_factory=dict)
