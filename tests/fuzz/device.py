"""The target that is the session of a device."""

from typing import Any

from script import Script

from edge_agent.events import (
    Cancel,
    Done,
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
from edge_agent.session import Phase as Doing
from edge_agent.session import Session
from shared.messages import (
    Blob,
    CoordinatorState,
    Grant,
    Offer,
    Plan,
    Receipt,
    Report,
    Task,
)

# --- the device's session -------------------------------------------------------------------------------------------


def _task(script: Script) -> Task:
    number, action = script.below(4), script.of(("train", "personalize"))
    blob = Blob(digest=script.of("ab") * 64, size=5000, chunk=1024)
    plan = Plan(model="m", algorithm="fedavg")
    return Task(
        run=script.of(("r", "s")),
        action=action,  # type: ignore[arg-type]
        round=number,
        plan=plan,
        payload=blob,
        time_left_s=float(script.below(9)),
    )


def _answer(key: Key) -> Offer | Report:
    if key.action == "personalize":
        return Report(run=key.run, round=key.round, examples=1, metrics={})
    return Offer(run=key.run, round=key.round, blob=Blob(digest=f"{key.round}" * 64, size=3000, chunk=1024))


def _session_event(script: Script, fetching: Task | None, working: Task | None, keys: list[Key]) -> Any:
    match script.below(14):
        case 0 | 1:
            return _task(script)
        case 2 | 3 if fetching:
            return Fetched(Key.of(fetching))
        case 4 | 5 if working:
            return Done(Key.of(working), _answer(Key.of(working)))
        case 2:
            return Fetched(script.of(keys))
        case 6:
            return Failed(script.of(keys), "code", "why")
        case 7:
            key = script.of(keys)
            kind = script.of(("offer", "failure", "report"))
            return Receipt(run=key.run, round=key.round, answers=kind, accepted=script.below(3) > 0)  # type: ignore[arg-type]
        case 8:
            first = script.below(6)
            span = ((first, first + 1 + script.below(255)),)
            return Grant(run=script.of(("r", "s")), digest=script.of("0123") * 64, ranges=span)
        case 9:
            return HealthChanged(script.below(2) == 0, "hot")
        case 10:
            return CoordinatorState(online=script.below(3) > 0, epoch=script.below(4), run="r")
        case 11:
            return TaskCleared()
        case 12:
            return Stalled()
        case _:
            return LinkDown() if script.below(3) == 0 else LinkUp()


def session(data: bytes) -> None:
    """Any order of what a device hears: it never works on two things at once, never forgets an answer without its
    receipt unless it was overtaken, never sends chunks that it has not, and never sends while there is no link."""
    script, machine = Script(data), Session()
    fetching: Task | None = None
    working: Task | None = None
    linked = False
    keys = [Key("r", 1, "train", "a" * 64)]
    for _ in range(120):
        if not script:
            return
        event = _session_event(script, fetching, working, keys)
        linked = True if isinstance(event, LinkUp) else False if isinstance(event, LinkDown) else linked
        before = machine.answer
        if isinstance(event, Task):
            keys.append(Key.of(event))
        if isinstance(event, Done):
            fetching = working = None
        for action in machine.handle(event):
            match action:
                case Fetch(task):
                    assert (fetching, working) == (None, None)
                    fetching = task
                case Work(task):
                    assert fetching is not None
                    assert (Key.of(fetching), working) == (Key.of(task), None)
                    fetching, working = None, task
                case Cancel():
                    fetching = working = None
                case Say(answer):
                    assert linked
                    assert answer == machine.answer
                case Send(blob, ranges):
                    assert isinstance(machine.answer, Offer)
                    assert machine.answer.blob == blob
                    assert all(0 <= first < end <= blob.chunks for first, end in ranges)
                case Forget(answer, accepted):
                    if accepted:
                        assert isinstance(event, Receipt)
                        assert event.accepted
                        assert (event.run, event.round, event.answers) == (answer.run, answer.round, answer.kind)
                        assert answer == before
                    assert isinstance(event, Receipt | Task | TaskCleared | Done)
        if isinstance(event, Failed) and machine.phase is Doing.ANSWERING:
            fetching = working = None
        assert (machine.phase is Doing.FETCHING) == (fetching is not None)
        assert (machine.phase is Doing.WORKING) == (working is not None)
        assert (machine.phase is Doing.ANSWERING) == (machine.answer is not None)
