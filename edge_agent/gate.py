"""Whether this device may take a task now: its machine's health, and what its link may still carry today."""

from collections.abc import Callable

from edge_agent.budget import Budget
from edge_agent.health import Reading, Verdict, judge
from shared.profiles import Profile


class Gate:
    """Looks, and remembers the last look.

    look    reads the machine's health
    budget  of a metered link
    heeds   whether either is a reason to refuse anything: not on an emulated device, whose machine and day are not its
    """

    def __init__(self, profile: Profile, look: Callable[[], Reading], budget: Budget | None, *, heeds: bool) -> None:
        self._profile = profile
        self._look = look if heeds else Reading
        self._budget, self._heeds = budget, heeds
        self._verdict = Verdict()
        self.reading = Reading()

    def check(self, *, busy: bool, working: bool) -> Verdict:
        """A new look. working: our trainer runs; busy: or a task is being fetched, which the budget allowed already."""
        self.reading = self._look()
        self._verdict = judge(self.reading, self._profile, before=self._verdict, working=working)
        problem = self._budget.problem() if self._budget and self._heeds and not busy else ""
        if self._verdict.ok and problem:
            return Verdict({"budget": problem})
        return self._verdict

    def afford(self, count: int) -> Verdict:
        """Whether so many bytes may be fetched; if not, `check` says so as well, until the day ends."""
        if self._budget is None or not self._heeds or self._budget.fits(count):
            return Verdict()
        return Verdict({"budget": self._budget.problem()})

    @property
    def budget_left(self) -> int | None:
        """Bytes that a metered link may still carry today; None: it is not metered."""
        return self._budget.left if self._budget else None
