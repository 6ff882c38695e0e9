"""The target that is the session of a device."""

from functools import cache
from itertools import count
from typing import Literal

from script import Script, events, reached

from edge_agent.events import (
    Action,
    Cancel,
    Done,
    Event,
    Failed,
    Fetch,
    Fetched,
    Forget,
    HealthChanged,
    Key,
    LinkDown,
    LinkUp,
    Say,
    Send,
    Stalled,
    TaskCleared,
    Work,
)
from edge_agent.session import Phase, Session
from shared.messages import Blob, CoordinatorState, Grant, Offer, Plan, Receipt, Report, Task

PLAN = Plan(model="m", algorithm="fedavg")
CHUNK = 1024
Kind = Literal["offer", "failure", "report"]
KINDS: tuple[Kind, ...] = ("offer", "failure", "report")
MOST = 60
"""Events of an input."""


@cache
def _task(run: str, action: Literal["train", "personalize"], number: int, digest: str, left: int) -> Task:
    blob = Blob(digest=digest * 64, size=5 * CHUNK, chunk=CHUNK)
    return Task(run=run, action=action, round=number, plan=PLAN, payload=blob, time_left_s=float(left))


@cache
def _answer(key: Key, digest: int) -> Offer | Report:
    if key.action == "personalize":
        return Report(run=key.run, round=key.round, examples=1, metrics={"accuracy": float(digest)})
    return Offer(run=key.run, round=key.round, blob=Blob(digest=f"{digest:x}" * 64, size=3 * CHUNK, chunk=CHUNK))


@cache
def _receipt(run: str, number: int, answers: Kind, accepted: bool) -> Receipt:
    return Receipt(run=run, round=number, answers=answers, accepted=accepted)


@cache
def _grant(run: str, digest: int, first: int, size: int) -> Grant:
    return Grant(run=run, digest=f"{digest:x}" * 64, ranges=((first, first + 1 + size),))


@cache
def _state(online: bool, epoch: int) -> CoordinatorState:
    return CoordinatorState(online=online, epoch=epoch, run="r")


class _Device:
    """A session and what surrounds it: the workbench, the disk, the link and what is known of the coordinator."""

    def __init__(self) -> None:
        self.machine = Session()
        self.fetching: Task | None = None
        self.working: Task | None = None
        self.cancelled: Task | None = None
        """Whose result may still have reached the disk."""
        self.done: Key | None = None
        self.answer: Offer | Report | None = None
        """Both as the disk has them."""
        self.linked = False
        self.there, self.epoch = True, -1
        self.healthy = True
        self.keys = [Key("r", 1, "train", "a" * 64)]
        self.numbers = count()

    def next(self, script: Script) -> Event | None:
        """What happens; None: a restart."""
        kind, pick = script.below(16), script.below(8)
        match kind:
            case 0 | 1:
                action: Literal["train", "personalize"] = script.of(("train", "personalize"))
                return _task("rs"[pick == 7], action, script.below(4), script.of("ab"), script.below(2))
            case 2 if self.fetching:
                return Fetched(Key.of(self.fetching))
            case 3 | 4 if self.working or self.cancelled:
                task = self.cancelled if self.cancelled and (pick == 0 or not self.working) else self.working
                assert task is not None
                return Done(Key.of(task), _answer(Key.of(task), next(self.numbers) % 16))
            case 5:
                return Fetched(script.of(self.keys))
            case 6:
                now = self.working or self.fetching
                return Failed(Key.of(now) if now and pick else script.of(self.keys), "code", "why")
            case 7 | 8:
                said = self.machine.answer
                if said and pick < 5:  # its own, or nearly so
                    kinds = (said.kind, said.kind, said.kind, *KINDS)
                    number = said.round if script.below(4) else said.round + 1
                    return _receipt(said.run, number, script.of(kinds), script.below(3) > 0)
                return _receipt("rs"[pick == 7], script.below(4), script.of(KINDS), script.below(3) > 0)
            case 9:
                own = isinstance(self.machine.answer, Offer) and pick < 6
                digest = int(self.machine.answer.blob.digest[0], 16) if own else script.below(16)  # type: ignore[union-attr]
                return _grant("rs"[pick == 7], digest, script.below(6), script.below(255))
            case 10:
                return HealthChanged(pick > 2, "hot")
            case 11:
                return _state(pick > 2, script.below(4))
            case 12:
                return TaskCleared()
            case 13:
                return Stalled()
            case 14:
                return None
            case _:
                return LinkUp() if pick > 2 else LinkDown()

    def restart(self) -> None:
        self.machine = Session(self.done, self.answer)
        self.fetching = self.working = self.cancelled = None
        self.linked, self.there, self.epoch, self.healthy = False, True, -1, True

    def note(self, event: Event) -> None:
        """What is so, whatever the session makes of it."""
        match event:
            case LinkUp():
                self.linked = True
            case LinkDown():
                self.linked = False
            case CoordinatorState(online=online, epoch=epoch):
                if online or epoch >= self.epoch:  # not the will of an earlier start
                    self.there, self.epoch = online, epoch
            case HealthChanged(ok, _):
                self.healthy = ok
            case Task():
                self.keys.append(Key.of(event))
            case Fetched() | Failed():
                self.cancelled = None
            case Done(key, answer):
                if self.working and Key.of(self.working) == key:
                    self.working = None
                self.cancelled = None
                self.done, self.answer = key, answer

    def do(self, action: Action, event: Event) -> None:
        match action:
            case Fetch(task):
                assert self.healthy
                assert (self.fetching, self.working) == (None, None), "two things at a time"
                assert Key.of(task) != self.done, "the same work twice"
                self.fetching = task
            case Work(task):
                assert self.fetching is not None
                assert (Key.of(self.fetching), self.working) == (Key.of(task), None)
                self.fetching, self.working = None, task
            case Cancel():
                self.cancelled = self.working
                self.fetching = self.working = None
            case Say(answer):
                assert self.linked and self.there, "to nobody"  # noqa: PT018 (one thing)
                assert answer == self.machine.answer
            case Send(blob, ranges):
                assert isinstance(event, Grant)
                assert self.answer is not None
                assert self.answer == self.machine.answer
                assert (event.run, event.digest, blob.digest) == (self.answer.run, blob.digest, self._digest)
                assert all(0 <= first < end <= blob.chunks for first, end in ranges)
            case Forget(answer, accepted):
                assert answer == self.answer, "what is forgotten is what is kept"
                if isinstance(event, Receipt):
                    assert (event.run, event.round, event.answers) == (answer.run, answer.round, answer.kind)
                    assert accepted == event.accepted
                else:
                    assert not accepted
                    assert isinstance(event, Task | Done)
                self.answer = None
                self.done = self.done if accepted else None

    @property
    def _digest(self) -> str:
        return self.answer.blob.digest if isinstance(self.answer, Offer) else ""

    def check(self, event: Event | None, before: tuple[object, ...], actions: list[Action]) -> None:
        machine = self.machine
        kept = machine.answer if isinstance(machine.answer, Offer | Report) else None
        assert (machine.done, kept) == (self.done, self.answer), "a restart would know something else"
        assert (machine.phase is Phase.FETCHING) == (self.fetching is not None)
        assert (machine.phase is Phase.WORKING) == (self.working is not None)
        assert (machine.phase is Phase.ANSWERING) == (machine.answer is not None)
        heard = machine.answer is not None and self.linked and self.there
        news = before[:3] != (self.linked, self.there, self.epoch)
        if heard and (news or isinstance(event, LinkUp | Stalled | Done)):
            assert Say(machine.answer) in actions, "it has an answer and does not say it"  # type: ignore[arg-type]
        if isinstance(event, Failed) and before[3] != event.key:
            assert not actions, "the failure of something else"
        if isinstance(event, Done) and before[3] not in (None, event.key):
            assert self.fetching or self.working, "what is under way is not ended by what was overtaken"
        reached(
            machine.phase, type(machine.answer), machine.task is None, self.done is None, self.cancelled is None,
            self.linked, self.there, self.healthy, type(event), *map(type, actions),
        )  # fmt: skip


def session(data: bytes) -> None:
    """Any order of what a device hears, and restarts: it never works on two things at once nor twice on the same, never
    forgets an answer without its receipt unless it was overtaken, says it whenever somebody may have begun to listen
    and to nobody else, never sends chunks that it has not, and knows after a restart what it knew before."""
    device = _Device()
    for script in events(data, MOST):
        event = device.next(script)
        busy = device.working or device.fetching
        before = (device.linked, device.there, device.epoch, busy and Key.of(busy))
        actions: list[Action] = []
        if event is None:
            device.restart()
            before = (device.linked, device.there, device.epoch, None)
        else:
            device.note(event)
            if isinstance(event, Failed) and before[3] == event.key:
                device.fetching = device.working = None
            actions = device.machine.handle(event)
            for action in actions:
                device.do(action, event)
        device.check(event, before, actions)
