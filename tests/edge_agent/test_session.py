"""The session under every order of events: by example, and as a state machine with a device and a world around it."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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
from edge_agent.session import Phase, Session
from shared.messages import Blob, CoordinatorState, Failure, Grant, Offer, Plan, Receipt, Report, Task

PLAN = Plan(model="smallcnn", algorithm="fedavg")


def task(round_: int = 1, *, run: str = "run", action: Any = "train", left: float = 60.0) -> Task:
    payload = Blob(digest=f"{round_:x}" * 64, size=5000, chunk=1024)
    return Task(run=run, action=action, round=round_, plan=PLAN, payload=payload, time_left_s=left)


def answer_to(asked: Task) -> Offer | Report:
    if asked.action == "personalize":
        return Report(run=asked.run, round=asked.round, examples=10, metrics={})
    return Offer(run=asked.run, round=asked.round, blob=Blob(digest=f"{asked.round + 8:x}" * 64, size=3000, chunk=1024))


def receipt(answer: Answer, *, accepted: bool = True) -> Receipt:
    return Receipt(
        run=answer.run,
        round=answer.round,
        answers=answer.kind,
        accepted=accepted,
        code="accepted" if accepted else "stale",
    )


def online(epoch: int = 1) -> CoordinatorState:
    return CoordinatorState(online=True, epoch=epoch, run="run")


def linked(session: Session | None = None) -> Session:
    session = session or Session()
    session.handle(LinkUp())
    session.handle(online())
    return session


def finish(session: Session, asked: Task) -> Offer | Report:
    """The usual way of a task, up to its answer."""
    session.handle(asked)
    session.handle(Fetched(Key.of(asked)))
    answer = answer_to(asked)
    assert session.handle(Done(Key.of(asked), answer)) == [Say(answer)]
    return answer


def everything(session: Session, *events: Event) -> list[Action]:
    return [action for event in events for action in session.handle(event)]


# --- the usual way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["train", "personalize"])
def test_a_round(action: str) -> None:
    session, asked = linked(), task(action=action)
    answer = answer_to(asked)
    assert session.handle(asked) == [Fetch(asked)]
    assert session.handle(Fetched(Key.of(asked))) == [Work(asked)]
    assert session.handle(Done(Key.of(asked), answer)) == [Say(answer)]
    assert session.handle(receipt(answer)) == [Forget(answer, accepted=True)]
    assert session.phase is Phase.IDLE


def test_a_grant_sends_exactly_what_it_grants() -> None:
    session = linked()
    offer = finish(session, task())
    assert isinstance(offer, Offer)
    grant = Grant(run="run", digest=offer.blob.digest, ranges=((0, 1), (2, 3)))
    assert session.handle(grant) == [Send(offer.blob, ((0, 1), (2, 3)))]
    assert session.handle(grant) == [Send(offer.blob, ((0, 1), (2, 3)))], "granted again: it was lost"


def test_a_grant_beyond_the_payload_is_cut() -> None:
    session = linked()
    offer = finish(session, task())
    assert isinstance(offer, Offer)
    assert session.handle(Grant(run="run", digest=offer.blob.digest, ranges=((1, 99), (50, 60)))) == [
        Send(offer.blob, ((1, 3),))
    ]
    assert session.handle(Grant(run="run", digest=offer.blob.digest, ranges=((50, 60),))) == []


# --- repeated, late, foreign ------------------------------------------------------------------------------------------


def test_a_task_seen_twice_is_done_once() -> None:
    session, asked = linked(), task()
    again = task(left=30.0)
    assert session.handle(asked) == [Fetch(asked)]
    assert session.handle(again) == []
    assert session.handle(Fetched(Key.of(asked))) == [Work(again)]
    assert everything(session, again, Fetched(Key.of(asked))) == []


def test_a_trained_round_is_offered_again_until_its_receipt() -> None:
    session, asked = linked(), task()
    offer = finish(session, asked)
    for event in (asked, task(left=5.0), LinkUp(), online(2), Stalled()):
        assert Say(offer) in session.handle(event)
    session.handle(receipt(offer))
    assert everything(session, asked, online(3), Stalled(), task(left=1.0)) == []


def test_a_restart_offers_what_is_on_the_disk() -> None:
    asked = task()
    offer = answer_to(asked)
    session = Session(done=Key.of(asked), answer=offer)
    assert session.handle(LinkUp()) == [Announce(), Say(offer)]
    assert session.handle(asked) == [Say(offer)]
    settled = Session(done=Key.of(asked), answer=None)
    assert everything(settled, LinkUp(), asked) == [Announce()]


def test_nothing_is_said_where_nobody_listens() -> None:
    session = linked()
    session.handle(LinkDown())
    asked = task()
    everything(session, asked, Fetched(Key.of(asked)))
    offer = answer_to(asked)
    assert session.handle(Done(Key.of(asked), offer)) == []
    assert session.handle(Stalled()) == []
    assert session.handle(LinkUp()) == [Announce(), Say(offer)]
    session.handle(CoordinatorState(online=False, epoch=1))
    assert everything(session, Stalled(), LinkUp()) == [Announce()]
    assert session.handle(online(2)) == [Say(offer)]


def test_the_last_will_of_an_earlier_coordinator_is_ignored() -> None:
    session = linked()
    offer = finish(session, task())
    session.handle(online(5))
    session.handle(CoordinatorState(online=False, epoch=4))
    assert session.handle(Stalled()) == [Say(offer)]


def test_what_belongs_to_something_else_is_ignored() -> None:
    session = linked()
    assert everything(session, Grant(run="run", digest="a" * 64, ranges=((0, 1),))) == []
    assert session.handle(Receipt(run="run", round=1, answers="offer", accepted=True)) == []
    offer = finish(session, task(2))
    assert session.handle(Receipt(run="run", round=1, answers="offer", accepted=True)) == []
    assert session.handle(Receipt(run="other", round=2, answers="offer", accepted=True)) == []
    assert session.handle(Receipt(run="run", round=2, answers="failure", accepted=True)) == []
    assert session.handle(Grant(run="run", digest="f" * 64, ranges=((0, 1),))) == []
    assert session.answer == offer


def test_events_of_cancelled_work_are_ignored() -> None:
    session, first, second = linked(), task(1), task(2)
    session.handle(first)
    session.handle(second)
    assert everything(session, Fetched(Key.of(first)), Failed(Key.of(first), "link", "late")) == []
    assert session.handle(Fetched(Key.of(second))) == [Work(second)]


# --- overtaken --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("working", [False, True])
def test_a_new_round_overtakes_the_one_under_way(working: bool) -> None:
    session, first, second = linked(), task(1), task(2)
    session.handle(first)
    if working:
        session.handle(Fetched(Key.of(first)))
    cancel, fetch = session.handle(second)
    assert isinstance(cancel, Cancel)
    assert "round 2" in cancel.reason
    assert fetch == Fetch(second)


def test_another_run_overtakes_a_pending_update() -> None:
    session = linked()
    offer, asked = finish(session, task(3)), task(1, run="other")
    assert session.handle(asked) == [Forget(offer, accepted=False), Fetch(asked)]


def test_work_that_finished_while_it_was_overtaken() -> None:
    session, first, second = linked(), task(1), task(2)
    session.handle(receipt(finish(session, task(3))))
    everything(session, first, Fetched(Key.of(first)), second)
    offer = answer_to(first)
    assert session.handle(Done(Key.of(first), offer)) == [Forget(offer, accepted=False)]
    assert session.done is None, "as on the disk, where the first round's result took the place of the third's"
    assert session.phase is Phase.FETCHING


def test_work_that_finished_while_it_was_withdrawn_is_offered() -> None:
    session, asked = linked(), task()
    everything(session, asked, Fetched(Key.of(asked)), TaskCleared())
    offer = answer_to(asked)
    assert session.handle(Done(Key.of(asked), offer)) == [Say(offer)]


def test_a_withdrawn_task_is_dropped_but_not_a_finished_update() -> None:
    session, asked = linked(), task()
    session.handle(asked)
    assert session.handle(TaskCleared()) == [Cancel("the task was withdrawn")]
    assert session.handle(TaskCleared()) == []
    assert session.handle(asked) == [Fetch(asked)]
    session.handle(TaskCleared())
    offer = finish(session, asked)
    assert session.handle(TaskCleared()) == []
    assert session.handle(Stalled()) == [Say(offer)]


# --- refused and failed -----------------------------------------------------------------------------------------------


def test_a_refused_update_is_forgotten_and_not_made_again_unasked() -> None:
    session, asked = linked(), task()
    offer = finish(session, asked)
    assert session.handle(receipt(offer, accepted=False)) == [Forget(offer, accepted=False)]
    assert session.handle(asked) == [], "the same message, delivered again"
    anew = task(left=50.0)
    assert session.handle(anew) == [Fetch(anew)], "asked anew"


def test_a_failure_is_said_until_its_receipt_and_tried_again_only_if_asked_anew() -> None:
    session, asked = linked(), task()
    everything(session, asked, Fetched(Key.of(asked)))
    failure = Failure(run="run", round=1, code="out_of_memory", reason="too big")
    assert session.handle(Failed(Key.of(asked), "out_of_memory", "too big")) == [Say(failure)]
    assert session.handle(Failed(Key.of(asked), "out_of_memory", "too big")) == []
    assert session.handle(task(left=50.0)) == [Say(failure)], "no receipt yet"
    assert session.handle(Stalled()) == [Say(failure)]
    assert session.handle(receipt(failure)) == []
    assert session.handle(task(left=50.0)) == [], "the same message, delivered again"
    assert session.handle(task(left=40.0)) == [Fetch(task(left=40.0))]


def test_a_long_reason_is_cut_to_what_a_message_takes() -> None:
    session, asked = linked(), task()
    session.handle(asked)
    (said,) = session.handle(Failed(Key.of(asked), "crashed", "x" * 9000))
    assert isinstance(said, Say)
    assert isinstance(said.answer, Failure)
    assert len(said.answer.reason) == 500


# --- health -----------------------------------------------------------------------------------------------------------


def test_an_unhealthy_device_refuses_and_says_so() -> None:
    session, asked = linked(), task()
    assert session.handle(HealthChanged(False, "90 C")) == [Announce()]
    assert session.handle(HealthChanged(False, "90 C")) == []
    refusal = Failure(run="run", round=1, code="unhealthy", reason="90 C")
    assert session.handle(asked) == [Say(refusal)]
    assert session.handle(HealthChanged(True, "")) == [Announce()]
    session.handle(receipt(refusal))
    assert session.handle(task(left=50.0)) == [Fetch(task(left=50.0))]


def test_work_stops_when_the_device_gets_too_hot() -> None:
    session, asked = linked(), task()
    everything(session, asked, Fetched(Key.of(asked)))
    refusal = Failure(run="run", round=1, code="unhealthy", reason="90 C")
    assert session.handle(HealthChanged(False, "90 C")) == [Announce(), Cancel("90 C"), Say(refusal)]


def test_a_finished_update_is_offered_whatever_the_health() -> None:
    session = linked()
    offer = finish(session, task())
    session.handle(HealthChanged(False, "90 C"))
    assert session.handle(Stalled()) == [Say(offer)]


# --- any order --------------------------------------------------------------------------------------------------------

TASKS = st.builds(
    task,
    st.integers(1, 3),
    run=st.sampled_from(["run", "other"]),
    action=st.sampled_from(["train", "personalize"]),
    left=st.sampled_from([60.0, 30.0]),
)


class Device(RuleBasedStateMachine):
    """A session, the shell and the disk that it believes it has, and a world that loses, repeats and reorders."""

    @initialize()
    def start(self) -> None:
        self.disk: tuple[Key | None, Offer | Report | None] = (None, None)
        self.accepted: set[Key] = set()
        self.heard: list[Answer] = []
        self.late: list[Event] = []
        self.boot()

    def boot(self) -> None:
        self.session = Session(*self.disk)
        self.fetching: Task | None = None
        self.working: Task | None = None
        self.untold: Done | None = None

    def tell(self, event: Event) -> None:
        for action in self.session.handle(event):
            self.perform(action)

    def perform(self, action: Action) -> None:
        done, answer = self.disk
        match action:
            case Fetch(asked):
                assert self.fetching is None, "one fetch at a time"
                assert self.working is None, "never a fetch beside work"
                self.fetching = asked
            case Work(asked):
                assert self.fetching is not None, "work needs what was fetched"
                assert Key.of(asked) == Key.of(self.fetching)
                self.fetching, self.working = None, asked
            case Cancel():
                assert self.fetching or self.working or self.untold, "nothing to cancel"
                if self.working:
                    self.late.append(Failed(Key.of(self.working), "crashed", "late"))
                if self.fetching:
                    self.late.append(Fetched(Key.of(self.fetching)))
                self.fetching = self.working = None
            case Say(said):
                self.heard.append(said)
                if not isinstance(said, Failure):
                    assert said == answer, "only what is on the disk is offered"
            case Send(blob, ranges):
                assert isinstance(answer, Offer)
                assert blob == answer.blob
                assert all(0 <= first < end <= blob.chunks for first, end in ranges)
            case Forget(forgotten, accepted):
                assert forgotten == answer
                if accepted and done:
                    self.accepted.add(done)
                self.disk = (done if accepted else None, None)

    @rule(asked=TASKS)
    def ask(self, asked: Task) -> None:
        self.tell(asked)

    @rule(
        event=st.one_of(
            st.sampled_from([LinkUp(), LinkDown(), TaskCleared(), Stalled()]),
            st.builds(CoordinatorState, online=st.booleans(), epoch=st.integers(1, 3)),
            st.builds(HealthChanged, st.booleans(), st.sampled_from(["hot", "empty"])),
            st.builds(
                Grant,
                run=st.sampled_from(["run", "other"]),
                digest=st.sampled_from([character * 64 for character in "9ab"]),
                ranges=st.just(((0, 2), (2, 9))),
            ),
        )
    )
    def world(self, event: Event) -> None:
        self.tell(event)

    @precondition(lambda self: self.fetching and not self.untold)
    @rule()
    def fetched(self) -> None:
        assert self.fetching
        self.tell(Fetched(Key.of(self.fetching)))

    @precondition(lambda self: self.working and not self.untold)
    @rule()
    def committed(self) -> None:
        """The result is on the disk; the session hears of it later."""
        assert self.working
        asked, self.working = self.working, None
        self.disk = (Key.of(asked), answer_to(asked))
        self.untold = Done(Key.of(asked), answer_to(asked))

    @precondition(lambda self: self.untold)
    @rule()
    def told(self) -> None:
        assert self.untold
        event, self.untold = self.untold, None
        self.tell(event)

    @precondition(lambda self: self.fetching or self.working)
    @rule()
    def failed(self) -> None:
        asked = self.fetching or self.working
        assert asked
        self.fetching = self.working = None
        self.tell(Failed(Key.of(asked), "crashed", "bad luck"))

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def cancelled_work_speaks_up(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from(self.late))
        stale = isinstance(event, Fetched | Failed) and all(
            duty is None or Key.of(duty) != event.key for duty in (self.fetching, self.working)
        )
        if stale:
            self.tell(event)

    @precondition(lambda self: self.heard)
    @rule(data=st.data(), accepted=st.booleans())
    def receipt_for_anything_said(self, data: st.DataObject, accepted: bool) -> None:
        self.tell(receipt(data.draw(st.sampled_from(self.heard)), accepted=accepted))

    @rule()
    def killed(self) -> None:
        self.boot()

    @rule(asked=TASKS)
    def converges(self, asked: Task) -> None:
        """Whatever happened before: when the world is well and the task stands, the coordinator gets its answer."""
        if self.untold:
            self.told()
        for event in (HealthChanged(True, ""), LinkUp(), online(9)):
            self.tell(event)
        for left in (99.0, 98.0, 97.0):
            self.ask(replace_time(asked, left))
            if self.fetching:
                self.fetched()
            if self.working:
                self.committed()
                self.told()
            if self.session.answer:
                assert self.heard[-1] == self.session.answer
                self.tell(receipt(self.session.answer))
        assert Key.of(asked) in self.accepted
        assert self.session.phase is Phase.IDLE

    @invariant()
    def phases_and_the_shell_agree(self) -> None:
        phase = self.session.phase
        assert (phase is Phase.FETCHING) == (self.fetching is not None)
        if not self.untold:
            assert (phase is Phase.WORKING) == (self.working is not None)
        assert (phase is Phase.ANSWERING) == (self.session.answer is not None)

    @invariant()
    def the_disk_and_the_session_agree(self) -> None:
        answer = self.session.answer
        if self.untold:
            return
        assert self.disk == (self.session.done, None if isinstance(answer, Failure) else answer)


def replace_time(asked: Task, left: float) -> Task:
    return asked.model_copy(update={"time_left_s": left})


Device.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestDevice = Device.TestCase
