"""What the session is told and what it asks for: plain records between edge_agent.session and edge_agent.agent."""

from dataclasses import dataclass
from typing import TypeAlias

from shared.messages import Blob, CoordinatorState, Failure, Grant, Offer, Ranges, Receipt, Report, Task

Answer: TypeAlias = Offer | Report | Failure
"""What answers a task; the agent keeps the first two on disk until their receipt."""


@dataclass(frozen=True)
class Key:
    """One piece of work. A round that is asked again starts from the same payload and is the same work."""

    run: str
    round: int
    action: str
    digest: str

    @classmethod
    def of(cls, task: Task) -> "Key":
        return cls(task.run, task.round, task.action, task.payload.digest)


# --- events, beside the messages CoordinatorState, Task, Grant and Receipt -------------------------------------------


@dataclass(frozen=True)
class LinkUp:
    """The broker is reached (again)."""


@dataclass(frozen=True)
class LinkDown:
    """The broker is lost; the link is trying to reach it again."""


@dataclass(frozen=True)
class TaskCleared:
    """There is nothing to do."""


@dataclass(frozen=True)
class Fetched:
    """Everything that the task needs is on disk."""

    key: Key


@dataclass(frozen=True)
class Done:
    """The work is done; its result and the new memory are on disk."""

    key: Key
    answer: Offer | Report


@dataclass(frozen=True)
class Failed:
    """The fetch or the work of this task failed for good."""

    key: Key
    code: str
    reason: str


@dataclass(frozen=True)
class HealthChanged:
    """Whether this machine may work on tasks now; if not, the reason, and the code of a task's failure by it."""

    ok: bool
    reason: str
    code: str = "unhealthy"


@dataclass(frozen=True)
class Stalled:
    """An answer has been waiting, and nothing has moved for a while."""


Event: TypeAlias = (
    LinkUp
    | LinkDown
    | CoordinatorState
    | Task
    | TaskCleared
    | Fetched
    | Done
    | Failed
    | HealthChanged
    | Grant
    | Receipt
    | Stalled
)

# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Announce:
    """Publish our presence."""


@dataclass(frozen=True)
class Fetch:
    """Bring the task's payload (and template) to this device; answer with Fetched or Failed."""

    task: Task


@dataclass(frozen=True)
class Work:
    """Do the task, whose payload is here; answer with Done or Failed."""

    task: Task


@dataclass(frozen=True)
class Cancel:
    """Stop the fetch or the work under way; neither Fetched, Done nor Failed is expected any more."""

    reason: str


@dataclass(frozen=True)
class Say:
    """Publish this answer."""

    answer: Answer


@dataclass(frozen=True)
class Send:
    """Publish exactly these chunks of the pending update."""

    blob: Blob
    ranges: Ranges


@dataclass(frozen=True)
class Forget:
    """Drop this answer from the disk; the memory stays. Unless accepted, the same work may be asked for again."""

    answer: Offer | Report
    accepted: bool


Action: TypeAlias = Announce | Fetch | Work | Cancel | Say | Send | Forget
