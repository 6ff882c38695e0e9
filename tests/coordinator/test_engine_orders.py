"""The round engine under every order of events: what must never happen does not."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from orders import DEVICES, Orders, device, template

from coordinator.engine import RoundEngine
from coordinator.events import (
    AbandonRound,
    Action,
    CloseRound,
    Command,
    DeviceFailed,
    Finish,
    OpenPersonalization,
    OpenRound,
    Phase,
    Reported,
    UpdateAccepted,
    Verdict,
)
from shared.config_rounds import RoundSettings


class AnyOrder(Orders):
    kind = RoundEngine

    @initialize(
        count=st.integers(1, 3),
        quorum=st.integers(1, 3),
        cohort=st.none() | st.integers(3, 4),
        extra=st.integers(0, 1),
        enough=st.none() | st.just(3),
        seed=st.integers(0, 9),
        lacking=template,
    )
    def start(
        self,
        count: int,
        quorum: int,
        cohort: int | None,
        extra: int,
        enough: int | None,
        seed: int,
        lacking: Action | None,
    ) -> None:
        chosen = RoundSettings(
            count=count,
            quorum=quorum,
            cohort=cohort,
            enough=enough,
            min_devices=quorum + extra,
            deadline_s=10,
            personalize_deadline_s=10,
        )
        self.begin(chosen, lacking, seed)
        self.opened: list[OpenRound] = []
        self.closed: list[int] = []
        self.counted: dict[int, list[str]] = {}
        self.asked: dict[int, set[str]] = {}

    def check(self, command: Command) -> None:
        match command:
            case OpenRound(number, attempt, cohort):
                assert number == len(self.closed) + 1
                assert self.prepared or self.lacking != "train"
                before = [o for o in self.opened if o.number == number]
                assert attempt == len(before) + 1
                assert cohort
                assert set(cohort) <= self.online
                assert not set(cohort) & self.quarantined
                assert not set(cohort) & set(self.counted.get(number, ()))
                assert self.settings.cohort is None or len(cohort) <= self.settings.cohort
                assert len(set(cohort) | set(self.counted.get(number, ()))) >= self.settings.quorum
                self.opened.append(command)
                self.asked.setdefault(number, set()).update(cohort)
            case CloseRound(number, attempts):
                assert number == len(self.closed) + 1
                assert attempts == self.opened[-1].attempt
                assert self.settings.quorum <= len(self.counted[number]) <= (self.settings.enough or len(DEVICES))
                self.closed.append(number)
            case AbandonRound(number, attempt, _):
                assert (number, attempt) == (self.opened[-1].number, self.opened[-1].attempt)
                assert len(self.counted.get(number, ())) < self.settings.quorum
            case OpenPersonalization(number):
                assert self.prepared
                assert self.closed == list(range(1, self.settings.count + 1))
                assert number == self.settings.count + 1
                self.ends = self.now + self.settings.personalize_deadline_s
            case Finish(reported, failed, absent):
                assert len({*reported, *failed, *absent}) == len(reported) + len(failed) + len(absent)
                assert set(reported) == set(self.counted.get(self.settings.count + 1, ()))
                assert {*reported, *failed, *absent} >= self.able
                assert not set(absent) - self.quarantined or self.now >= self.ends, "it did not wait for everybody"
                self.finished = True

    @rule(name=device, back=st.integers(-1, 1))
    def answers(self, name: str, back: int) -> None:
        """As the shell does it: judged first, told only when it is welcome."""
        number = self.engine.round - back
        verdict = self.engine.judge(name, "run", number)
        personalizing = self.engine.phase is Phase.PERSONALIZING
        if verdict is Verdict.DUPLICATE:
            assert name in self.counted[number]
        if verdict is Verdict.WELCOME:
            assert number == self.engine.round
            assert name not in self.quarantined
            assert personalizing or name in self.asked[number]
            assert name not in self.counted.get(number, ())
            self.counted.setdefault(number, []).append(name)
        self.send(Reported(name, number) if personalizing else UpdateAccepted(name, number))

    @rule(name=device, back=st.integers(-1, 1))
    def fails(self, name: str, back: int) -> None:
        self.send(DeviceFailed(name, self.engine.round - back, "broken"))

    @rule()
    def restarts(self) -> None:
        """A restart forgets who is online and who failed, gives the open phase its full time, and nothing else."""
        answered = self.counted.get(self.engine.round, [])
        fresh = self.restarted(self.engine.snapshot(), [(name, self.engine.round) for name in answered])
        assert fresh.answered() == set(answered)
        self.go_on_with(fresh)

    @invariant()
    def only_asked_devices_have_work(self) -> None:
        for name in DEVICES:
            assert name not in self.quarantined or self.engine.wanted(name) is None
            match self.engine.wanted(name):
                case "train":
                    assert name in self.asked[self.engine.round]
                    assert name not in self.counted.get(self.engine.round, ())
                case "personalize":
                    assert name in self.able
                    assert len(self.closed) == self.settings.count
                    assert name not in self.counted.get(self.engine.round, ())


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
