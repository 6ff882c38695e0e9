"""The round engine under every order of events: what must never happen does not."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from coordinator.engine import RoundEngine
from coordinator.events import (
    AbandonRound,
    CloseRound,
    Command,
    DeviceAsleep,
    DeviceFailed,
    DeviceOffline,
    DeviceOnline,
    Event,
    Finish,
    OpenPersonalization,
    OpenRound,
    Phase,
    Quarantined,
    Released,
    Reported,
    Tick,
    UpdateAccepted,
    Verdict,
)
from shared.config_rounds import RoundSettings
from shared.messages import Capabilities

DEVICES = ("a", "b", "c", "d", "e")
device = st.sampled_from(DEVICES)


class AnyOrder(RuleBasedStateMachine):
    @initialize(
        count=st.integers(1, 3),
        quorum=st.integers(1, 3),
        cohort=st.none() | st.integers(3, 4),
        extra=st.integers(0, 1),
        enough=st.none() | st.just(3),
        seed=st.integers(0, 9),
    )
    def start(self, count: int, quorum: int, cohort: int | None, extra: int, enough: int | None, seed: int) -> None:
        self.settings = RoundSettings(
            count=count,
            quorum=quorum,
            cohort=cohort,
            enough=enough,
            min_devices=quorum + extra,
            deadline_s=10,
            personalize_deadline_s=10,
        )
        self.seed = seed
        self.engine = RoundEngine("run", self.settings, seed=seed)
        self.now = 0.0
        self.online: set[str] = set()
        self.able: set[str] = set()
        self.quarantined: set[str] = set()
        self.opened: list[OpenRound] = []
        self.closed: list[int] = []
        self.counted: dict[int, list[str]] = {}
        self.asked: dict[int, set[str]] = {}
        self.finished = False

    def send(self, event: Event) -> None:
        assert not self.finished or not self.engine.handle(event, self.now)
        if not self.finished:
            for command in self.engine.handle(event, self.now):
                self.check(command)

    def check(self, command: Command) -> None:
        match command:
            case OpenRound(number, attempt, cohort):
                assert number == len(self.closed) + 1
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
                assert self.closed == list(range(1, self.settings.count + 1))
                assert number == self.settings.count + 1
                self.ends = self.now + self.settings.personalize_deadline_s
            case Finish(reported, failed, absent):
                assert len({*reported, *failed, *absent}) == len(reported) + len(failed) + len(absent)
                assert set(reported) == set(self.counted.get(self.settings.count + 1, ()))
                assert {*reported, *failed, *absent} >= self.able
                assert not set(absent) - self.quarantined or self.now >= self.ends, "it did not wait for everybody"
                self.finished = True

    @rule(name=device, able=st.booleans())
    def comes(self, name: str, able: bool) -> None:
        self.online.add(name)
        if able and not self.finished:
            self.able.add(name)
        self.send(DeviceOnline(name, Capabilities(profile="p", train=able)))

    @rule(name=device)
    def goes(self, name: str) -> None:
        self.online.discard(name)
        self.send(DeviceOffline(name))

    @rule(name=device, seconds=st.sampled_from([1.0, 9.0, 30.0]))
    def sleeps(self, name: str, seconds: float) -> None:
        """It counts as there: only the engine knows how long it can wait."""
        if name in self.able:
            self.online.add(name)
        self.send(DeviceAsleep(name, seconds))

    @rule(name=device)
    def is_quarantined(self, name: str) -> None:
        self.quarantined.add(name)
        self.send(Quarantined(name))

    @rule(name=device)
    def is_released(self, name: str) -> None:
        self.quarantined.discard(name)
        self.send(Released(name))

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

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 10.0]))
    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.send(Tick())

    @rule()
    def restarts(self) -> None:
        """A restart forgets who is online and who failed, gives the open phase its full time, and nothing else."""
        snapshot = self.engine.snapshot()
        answered = self.counted.get(self.engine.round, [])
        fresh = RoundEngine("run", self.settings, seed=self.seed)
        fresh.restore(snapshot, [(name, self.engine.round) for name in answered], self.now)
        assert fresh.snapshot() == snapshot
        assert fresh.answered() == set(answered)
        self.engine = fresh
        self.ends = self.now + self.settings.personalize_deadline_s
        for name in sorted(self.quarantined):
            self.send(Quarantined(name))
        for name in DEVICES:  # presence is retained
            able = name in self.able
            self.send(
                DeviceOnline(name, Capabilities(profile="p", train=able))
                if name in self.online
                else DeviceOffline(name)
            )

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

    @invariant()
    def time_goes_on(self) -> None:
        """An open phase always has a deadline, and it is never one that has passed unseen."""
        due = self.engine.next_deadline(self.now)
        if self.engine.phase in (Phase.COLLECTING, Phase.PERSONALIZING):
            assert due is not None
        assert due is None or due > self.now

    def teardown(self) -> None:
        """Every run ends, once enough devices are there and answer."""
        if not hasattr(self, "engine"):
            return
        for name in DEVICES:
            self.is_released(name)
            self.comes(name, True)
        for _ in range(self.settings.count + 1):
            for _ in range(3):
                for name in DEVICES:
                    if self.engine.wanted(name):
                        self.answers(name, 0)
                self.waits(10.0)
        assert self.finished


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
