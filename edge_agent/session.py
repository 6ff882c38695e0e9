"""What the agent does next. The session decides and never does: it knows no clock, file, socket or tensor.

    IDLE ──task──> FETCHING ──fetched──> WORKING ──done──> ANSWERING ──receipt──> IDLE
                       └────────failed───────┴─────────────────^

Every message may be lost, repeated or late. So a task is state (the latest wins), the answer to it (an offer, a report
or a failure) is said again until its receipt comes, and every event may be handled twice.
"""

from enum import Enum

from edge_agent.events import (
    Action,
    Announce,
    Answer,
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
from shared.messages import CoordinatorState, Failure, Grant, Offer, Receipt, Report, Task


class Phase(Enum):
    IDLE = "idle"
    FETCHING = "fetching"
    WORKING = "working"
    ANSWERING = "answering"


class Session:
    """One device's part of the protocol.

    done    the last work that needs no doing again: its answer is pending or was accepted
    answer  what has no receipt yet
    """

    def __init__(self, done: Key | None = None, answer: Offer | Report | None = None) -> None:
        self.done = done
        self.answer: Answer | None = answer
        self.task: Task | None = None
        self.healthy = True
        self.reason = ""
        self._code = ""
        self.phase = Phase.IDLE if answer is None else Phase.ANSWERING
        self._linked = False
        self._rejected: Task | None = None
        self._epoch: int | None = None
        self._coordinator = True

    def handle(self, event: Event) -> list[Action]:
        """The actions that this event asks for, in order."""
        match event:
            case LinkUp():
                self._linked = True
                return [Announce(), *self._say()]
            case LinkDown():
                self._linked = False
                return []
            case CoordinatorState():
                return self._coordinator_seen(event)
            case Task():
                return self._asked(event)
            case TaskCleared():
                return self._cleared()
            case Fetched(key):
                return self._fetched(key)
            case Done(key, answer):
                return self._finished(key, answer)
            case Failed(key, code, reason):
                return self._fail(code, reason) if self._at_work_on(key) else []
            case HealthChanged():
                return self._judged(event)
            case Grant():
                return self._granted(event)
            case Receipt():
                return self._settled(event)
            case Stalled():
                return self._say()

    def _say(self) -> list[Action]:
        """The unanswered answer again, where somebody may be listening."""
        return [Say(self.answer)] if self.answer and self._linked and self._coordinator else []

    def _at_work_on(self, key: Key) -> bool:
        busy = self.phase in (Phase.FETCHING, Phase.WORKING)
        return busy and self.task is not None and Key.of(self.task) == key

    def _coordinator_seen(self, state: CoordinatorState) -> list[Action]:
        if not state.online and self._epoch is not None and state.epoch < self._epoch:
            return []  # the last will of an earlier start
        news = state.epoch != self._epoch or not self._coordinator
        self._epoch, self._coordinator = state.epoch, state.online
        return self._say() if news else []

    def _asked(self, task: Task) -> list[Action]:
        key = Key.of(task)
        if self._at_work_on(key):
            self.task = task
            return []
        if self.phase is Phase.ANSWERING and key == self._answered():
            self.task = task
            if isinstance(self.answer, Failure):
                self._rejected = task
            return self._say()
        if task == self._rejected:
            return []
        actions = self._drop(f"round {task.round} of run {task.run} ({task.action}) overtook it")
        self.task = task
        if key == self.done:
            return actions
        if not self.healthy:
            return actions + self._fail(self._code, self.reason)
        self.phase = Phase.FETCHING
        return [*actions, Fetch(task)]

    def _answered(self) -> Key | None:
        """The work that the pending answer is about."""
        if isinstance(self.answer, Failure):
            return Key.of(self._rejected) if self._rejected else None
        return self.done

    def _cleared(self) -> list[Action]:
        """What is under way is pointless now, but a finished update stands until its receipt."""
        actions = [] if isinstance(self.answer, Offer | Report) else self._drop("the task was withdrawn")
        self.task = self._rejected = None
        return actions

    def _drop(self, reason: str) -> list[Action]:
        """Leave whatever is under way or pending."""
        actions: list[Action] = []
        if self.phase in (Phase.FETCHING, Phase.WORKING):
            actions.append(Cancel(reason))
        if isinstance(self.answer, Offer | Report):
            actions.append(Forget(self.answer, accepted=False))
            self.done = None
        self.answer = None
        self.phase = Phase.IDLE
        return actions

    def _fetched(self, key: Key) -> list[Action]:
        if self.task is None or self.phase is not Phase.FETCHING or not self._at_work_on(key):
            return []
        self.phase = Phase.WORKING
        return [Work(self.task)]

    def _finished(self, key: Key, answer: Offer | Report) -> list[Action]:
        """Also of work that reached the disk while it was being cancelled."""
        actions: list[Action] = []
        if self.phase in (Phase.FETCHING, Phase.WORKING):
            if not self._at_work_on(key):
                self.done = None
                return [Forget(answer, accepted=False)]
            if self.phase is Phase.FETCHING:
                actions.append(Cancel("it is done already"))
        self.done, self.answer, self.phase = key, answer, Phase.ANSWERING
        return actions + self._say()

    def _fail(self, code: str, reason: str) -> list[Action]:
        assert self.task is not None
        self.answer = Failure(run=self.task.run, round=self.task.round, code=code, reason=reason[:500])
        self._rejected, self.phase = self.task, Phase.ANSWERING
        return self._say()

    def _judged(self, news: HealthChanged) -> list[Action]:
        changed = (news.ok, news.reason) != (self.healthy, self.reason)
        self.healthy, self.reason, self._code = news.ok, news.reason, news.code
        actions: list[Action] = [Announce()] if changed and self._linked else []
        if not news.ok and self.phase in (Phase.FETCHING, Phase.WORKING):
            actions += [Cancel(news.reason), *self._fail(news.code, news.reason)]
        return actions

    def _granted(self, grant: Grant) -> list[Action]:
        offer = self.answer
        if not isinstance(offer, Offer) or (grant.run, grant.digest) != (offer.run, offer.blob.digest):
            return []
        chunks = offer.blob.chunks
        ranges = tuple((first, min(end, chunks)) for first, end in grant.ranges if first < min(end, chunks))
        return [Send(offer.blob, ranges)] if ranges else []

    def _settled(self, receipt: Receipt) -> list[Action]:
        answer = self.answer
        if answer is None or (receipt.run, receipt.round, receipt.answers) != (answer.run, answer.round, answer.kind):
            return []
        self.answer, self.phase = None, Phase.IDLE
        if isinstance(answer, Failure):
            return []
        if not receipt.accepted:
            self.done, self._rejected = None, self.task
        return [Forget(answer, receipt.accepted)]
