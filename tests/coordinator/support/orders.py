"""What can happen to a round engine, in any order, whatever its kind."""

from collections.abc import Sequence
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coordinator.events import (
    Action,
    Command,
    DeviceAsleep,
    DeviceOffline,
    DeviceOnline,
    Event,
    Phase,
    Prepared,
    Quarantined,
    Released,
    Snapshot,
    Tick,
)
from coordinator.rounds import Rounds
from shared.config_rounds import RoundSettings
from shared.messages import Capabilities

DEVICES = ("a", "b", "c", "d", "e")
device = st.sampled_from(DEVICES)
template = st.sampled_from([None, "personalize", "train"])
"""What is not begun before the template is made."""


class Orders(RuleBasedStateMachine):
    """Knows who is where; a subclass says which engine it is, what its commands must be, and how a device answers."""

    kind: ClassVar[type[Rounds]]

    def begin(self, settings: RoundSettings, lacking: Action | None, seed: int = 1) -> None:
        self.settings, self.lacking, self.seed = settings, lacking, seed
        self.engine = self.kind("run", settings, seed=seed, template=lacking)
        self.prepared = lacking is None
        self.now = 0.0
        self.online: set[str] = set()
        self.able: set[str] = set()
        self.quarantined: set[str] = set()
        self.finished = False

    def check(self, command: Command) -> None:
        raise NotImplementedError

    def answers(self, name: str, back: int) -> None:
        raise NotImplementedError

    def send(self, event: Event) -> None:
        for command in self.engine.handle(event, self.now):
            assert not self.finished
            self.check(command)

    def restarted(self, snapshot: Snapshot, answered: Sequence[tuple[str, int]]) -> Rounds:
        """Another engine of the same run, which is told who is in quarantine, and who is there, when it is ours."""
        fresh = self.kind("run", self.settings, seed=self.seed, template=self.lacking)
        fresh.restore(snapshot, answered, self.now)
        assert fresh.snapshot() == snapshot
        return fresh

    def go_on_with(self, fresh: Rounds) -> None:
        self.engine, self.prepared = fresh, self.lacking is None
        self.ends = self.now + self.settings.personalize_deadline_s
        for name in sorted(self.quarantined):
            self.send(Quarantined(name))
        for name in DEVICES:  # presence is retained
            able = Capabilities(profile="p", train=name in self.able)
            self.send(DeviceOnline(name, able) if name in self.online else DeviceOffline(name))

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

    @rule()
    def is_prepared(self) -> None:
        self.prepared = True
        self.send(Prepared())

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 10.0]))
    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.send(Tick())

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
        self.is_prepared()
        for name in DEVICES:
            self.is_released(name)
            self.comes(name, True)
        for _ in range(4 * (self.settings.count + 2)):
            for name in DEVICES:
                if self.engine.wanted(name):
                    self.answers(name, self.engine.round - self.engine.start(name))
            self.waits(10.0)
        assert self.finished
