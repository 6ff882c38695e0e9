"""The buffered engine under every order of events: what must never happen does not."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from orders import DEVICES, Orders, device, template

from coordinator.buffered import BufferedEngine
from coordinator.events import (
    AbandonRound,
    Action,
    AskDevices,
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
    kind = BufferedEngine

    @initialize(
        count=st.integers(1, 4),
        quorum=st.integers(1, 2),
        more=st.integers(0, 1),
        cohort=st.none() | st.integers(3, 4),
        staleness=st.integers(0, 2),
        lacking=template,
    )
    def start(
        self, count: int, quorum: int, more: int, cohort: int | None, staleness: int, lacking: Action | None
    ) -> None:
        chosen = RoundSettings(
            mode="buffered",
            count=count,
            quorum=quorum,
            enough=quorum + more,
            cohort=cohort,
            min_devices=quorum + more,
            max_staleness=staleness,
            deadline_s=10,
            personalize_deadline_s=10,
        )
        self.begin(chosen, lacking)
        self.closed = 0
        self.buffer: set[tuple[str, int]] = set()
        self.counted: set[tuple[str, int]] = set()
        self.asked: dict[str, int] = {}

    def check(self, command: Command) -> None:
        match command:
            case OpenRound(number, _, cohort):
                assert self.prepared or self.lacking != "train"
                assert number == self.closed + 1
                self.ask(number, [name for name in cohort if self.asked.get(name) is None or self.moved(name)])
                assert all(self.engine.wanted(name) == "train" for name in cohort)
            case AskDevices(number, devices):
                assert number == self.closed + 1
                assert devices
                self.ask(number, devices)
            case CloseRound(number, _):
                assert number == self.closed + 1
                assert len(self.buffer) >= self.settings.quorum
                assert all(number - start <= self.settings.max_staleness for _, start in self.buffer)
                self.buffer.clear()
                self.closed += 1
            case AbandonRound():
                assert len(self.buffer) < self.settings.quorum
            case OpenPersonalization(number):
                assert self.prepared
                assert self.closed == self.settings.count
                assert number == self.closed + 1
                self.ends = self.now + 10
                self.asked.clear()
            case Finish(reported, failed, absent):
                assert sorted([*reported, *failed, *absent]) == sorted(self.able)
                assert not set(absent) - self.quarantined or self.now >= self.ends
                self.finished = True

    def moved(self, name: str) -> bool:
        return self.engine.start(name) != self.asked[name]

    def ask(self, number: int, devices: "list[str] | tuple[str, ...]") -> None:
        for name in devices:
            assert name in self.online
            assert name not in self.quarantined
            assert (name, number) not in self.counted, "it answered these tensors before"
            self.asked[name] = number

    @rule(name=device, back=st.integers(-1, 4))
    def answers(self, name: str, back: int) -> None:
        """As the shell does it: judged first, told only when it is welcome."""
        number = max(1, self.engine.round - back)
        verdict = self.engine.judge(name, "run", number)
        if self.engine.phase is Phase.PERSONALIZING:
            if verdict is Verdict.WELCOME:
                assert number == self.closed + 1
                self.counted.add((name, number))
            self.send(Reported(name, number))
            return
        if verdict is Verdict.DUPLICATE:
            assert (name, number) in self.counted
        if verdict is Verdict.WELCOME:
            assert self.asked[name] == number
            assert name not in self.quarantined
            assert (name, number) not in self.counted, "it counts once"
            assert 0 <= self.closed + 1 - number <= self.settings.max_staleness
            self.counted.add((name, number))
            self.buffer.add((name, number))
        self.send(UpdateAccepted(name, number))

    @rule(name=device)
    def fails(self, name: str) -> None:
        self.send(DeviceFailed(name, self.engine.start(name), "broken"))

    @rule()
    def restarts(self) -> None:
        """A restart finds the same buffer, and everybody at work on the same tensors."""
        before = {name: self.engine.start(name) for name in DEVICES}
        wanted = {name: self.engine.wanted(name) for name in DEVICES if name not in self.quarantined}
        failed_too = self.engine.phase is Phase.PERSONALIZING
        answered = self.buffer or {pair for pair in self.counted if pair[1] == self.engine.round and failed_too}
        fresh = self.restarted(self.engine.snapshot(), sorted(answered))
        assert {name: fresh.start(name) for name in DEVICES} == before
        if not failed_too:
            assert {name: fresh.wanted(name) for name in wanted} == wanted
        self.go_on_with(fresh)

    @invariant()
    def nobody_works_in_vain(self) -> None:
        if self.engine.phase in (Phase.PERSONALIZING, Phase.FINISHED):
            return
        for name in DEVICES:
            if self.engine.wanted(name) == "train":
                assert self.engine.judge(name, "run", self.engine.start(name)) is Verdict.WELCOME
                assert self.engine.start(name) in self.engine.starts()
                assert self.engine.due(name) is not None

    @invariant()
    def nobody_idles(self) -> None:
        """While a round is open, whoever is there, can and may, has something to do, or has failed too often."""
        if self.engine.phase is Phase.COLLECTING:
            assert len(self.buffer) < self.settings.enough  # type: ignore[operator]


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestAnyOrder = AnyOrder.TestCase
