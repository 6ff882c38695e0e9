"""Everything that fuzzing ever kept, once more, without a fuzzer; and whether the targets would see what is wrong."""

import pytest
import targets
from seeds import corpus, seeds

from coordinator.engine import RoundEngine
from coordinator.events import Verdict
from edge_agent.events import Forget
from edge_agent.session import Phase, Session
from shared.errors import MalformedMessage
from shared.messages import Offer, Receipt, Report
from shared.seal import Verifier


@pytest.mark.parametrize("target", targets.TARGETS)
def test_what_is_known_does_no_harm(target: str) -> None:
    known = seeds(target)
    assert corpus(target).exists(), "a target is there to be fuzzed: scripts/fuzz keeps what it found"
    for data in known:
        targets.TARGETS[target](data)


def _fails(target: str) -> bool:
    for data in seeds(target):
        try:
            targets.TARGETS[target](data)
        except AssertionError:
            return True
    return False


def test_a_session_that_takes_any_receipt_for_its_own_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: Session, receipt: Receipt) -> list[object]:
        answer, self.answer, self.phase = self.answer, None, Phase.IDLE
        return [Forget(answer, accepted=receipt.accepted)] if isinstance(answer, Offer | Report) else []

    monkeypatch.setattr(Session, "_settled", hasty)
    assert _fails("session")


def test_an_engine_that_counts_twice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = RoundEngine.judge

    def forgetful(self: RoundEngine, device: str, run: str, number: int, action: object = None) -> Verdict:
        verdict = judge(self, device, run, number, action)  # type: ignore[arg-type]
        return Verdict.WELCOME if verdict is Verdict.DUPLICATE else verdict

    monkeypatch.setattr(RoundEngine, "judge", forgetful)
    assert _fails("coordinator")


def test_a_verifier_that_believes_everything_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def gullible(self: Verifier, topic: str, payload: bytes) -> bytes:
        if not payload:
            raise MalformedMessage("nothing")
        return payload

    monkeypatch.setattr(Verifier, "open", gullible)
    assert _fails("seals")
