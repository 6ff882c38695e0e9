"""How run and fleet stand at one moment: what fleet.json, the metrics and the tables of devices are made of. Pure but
for the file."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from coordinator.board import Board
from coordinator.fleet import Fleet, Twin
from coordinator.rounds import Rounds
from coordinator.uploads import UploadDesk
from shared.errors import StateError
from shared.files import atomic_write


class State(StrEnum):
    """Of a device, the ones that need somebody first."""

    QUARANTINED = "quarantined"
    UNFIT = "unfit"
    OFFLINE = "offline"
    ASLEEP = "asleep"
    READY = "ready"


@dataclass(frozen=True)
class VitalSigns:
    """What the device said of itself (shared.messages.Vitals), and when: seconds since 1970."""

    at: float
    phase: str
    uptime_s: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class DeviceView:
    """One device. Counters are since the start of the coordinator, times in seconds since 1970.

    why        why it is not asked; empty where it is
    last_seen  None: not since the start of the coordinator
    wakes_at   when it means to be back, while it sleeps
    """

    device: str
    state: State
    why: str = ""
    profile: str = ""
    version: str = ""
    examples: int = 0
    last_seen: float | None = None
    wakes_at: float | None = None
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    vitals: VitalSigns | None = None


@dataclass(frozen=True)
class Survey:
    """written        seconds since 1970
    serving        whether a coordinator was at work then
    jobs           work that waits for its turn in the coordinator
    granted_bytes  that devices may send now
    board_due      tasks and payloads that wait to be published
    """

    run: str
    written: float
    serving: bool
    connected: bool
    phase: str
    round: int
    attempt: int
    jobs: int
    granted_bytes: int
    board_due: int
    devices: tuple[DeviceView, ...]

    def same_as(self, other: "Survey | None") -> bool:
        """Whether nothing has changed but the time."""
        return other is not None and replace(other, written=self.written) == self


SURVEY = TypeAdapter(Survey)


def survey(
    engine: Rounds, fleet: Fleet, desk: UploadDesk | None, board: Board, *, jobs: int, now: float, wall: float
) -> Survey:
    """How things stand. `now`: of the clock that the twins know; `wall`: the same moment since 1970."""
    return Survey(
        run=engine.run,
        written=round(wall, 1),
        serving=True,
        connected=True,
        phase=str(engine.phase),
        round=engine.round,
        attempt=engine.attempt,
        jobs=jobs,
        granted_bytes=0 if desk is None else desk.granted,
        board_due=board.due,
        devices=tuple(
            _view(twin, engine.unfit(twin.capabilities), engine.quarantined(twin.device), wall - now)
            for twin in sorted(fleet, key=lambda twin: twin.device)
        ),
    )


def _view(twin: Twin, unfit: str, quarantined: bool, shift: float) -> DeviceView:
    capabilities, wakes_at = twin.capabilities, None
    if quarantined:
        state, why = State.QUARANTINED, "in quarantine: `talaria-coordinator release` ends it"
    elif twin.online:
        state, why = (State.UNFIT, unfit) if unfit else (State.READY, "")
    elif twin.asleep_s is not None and twin.last_seen is not None:
        state, why, wakes_at = State.ASLEEP, "sleeps", twin.last_seen + twin.asleep_s + shift
    else:
        state, why = State.OFFLINE, "offline"
    return DeviceView(
        device=twin.device,
        state=state,
        why=why,
        profile=capabilities.profile if capabilities else "",
        version=capabilities.version if capabilities else "",
        examples=capabilities.examples if capabilities else 0,
        last_seen=None if twin.last_seen is None else round(twin.last_seen + shift, 1),
        wakes_at=None if wakes_at is None else round(wakes_at, 1),
        accepted=twin.accepted,
        rejected=dict(twin.rejected),
        failed=dict(twin.failed),
        bytes_up=twin.bytes_up,
        bytes_down=twin.bytes_down,
        vitals=None
        if twin.vitals is None
        else VitalSigns(
            round(twin.vitals_at + shift, 1), twin.vitals.phase, twin.vitals.uptime_s, dict(twin.vitals.metrics)
        ),
    )


def write_survey(path: Path, survey: Survey) -> None:
    """OSError where the disk refuses."""
    atomic_write(path, SURVEY.dump_json(survey))


def read_survey(path: Path) -> Survey | None:
    """None where there is no file yet; StateError if it cannot be read."""
    try:
        return SURVEY.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StateError(
            f"{path} cannot be read: {error.errors()[0]['msg']}; the coordinator writes it anew"
        ) from error
