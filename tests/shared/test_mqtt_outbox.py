"""What is published is sent in order, a window at a time, again after a lost connection, and not for ever."""

import asyncio
from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import LinkError, PacketTooLarge
from shared.mqtt_outbox import Outbox, Publication

LIMIT = 10_000


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[None]:
    """Futures need a loop to belong to; nothing here runs in it."""
    Wire.loop = asyncio.new_event_loop()
    yield
    Wire.loop.close()


class Wire:
    """Sends what an outbox has due, and notes it."""

    loop: ClassVar[asyncio.AbstractEventLoop]

    def __init__(self, window: int = 3) -> None:
        self.outbox = Outbox()
        self.window = window
        self.log: list[bytes] = []
        self.numbers: dict[bytes, int] = {}

    def publish(self, payload: bytes) -> Publication:
        publication = Publication("t", payload, False, self.loop.create_future())
        self.outbox.add(publication)
        return publication

    def send(self, limit: int = LIMIT) -> list[bytes]:
        new = []
        for publication in self.outbox.due(self.window, limit):
            self.numbers[publication.payload] = len(self.log) + 1
            self.log.append(publication.payload)
            new.append(publication.payload)
            self.outbox.sent(self.numbers[publication.payload], publication, 0.0)
        return new

    def acknowledge(self, payload: bytes, error: LinkError | None = None) -> None:
        self.outbox.acknowledged(self.numbers[payload], error)


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_the_window_moves_with_the_acknowledgements(wire):
    first, *_ = [wire.publish(payload) for payload in (b"1", b"2", b"3", b"4", b"5")]
    assert wire.send() == [b"1", b"2", b"3"]
    assert wire.send() == []
    wire.acknowledge(b"2")
    assert wire.send() == [b"4"]
    wire.acknowledge(b"1")
    assert first.done.result() is None


def test_a_refusal_reaches_its_caller_only(wire):
    one, two = wire.publish(b"1"), wire.publish(b"2")
    wire.send()
    wire.acknowledge(b"1", LinkError("quota exceeded"))
    with pytest.raises(LinkError, match="quota"):
        one.done.result()
    assert not two.done.done()


def test_after_a_loss_the_oldest_goes_alone_until_it_is_acknowledged(wire):
    for payload in (b"1", b"2", b"3", b"4"):
        wire.publish(payload)
    wire.send()
    assert wire.outbox.lost(too_big=False) is None
    assert wire.send() == [b"1"]
    wire.acknowledge(b"1")
    assert wire.send() == [b"2", b"3", b"4"]


def test_what_kills_two_connections_in_a_row_is_given_up(wire):
    wire.publish(b"poison")
    wire.publish(b"fine")
    wire.send()
    assert wire.outbox.lost(too_big=False) is None
    assert wire.send() == [b"poison"]
    victim = wire.outbox.lost(too_big=False)
    assert victim is not None
    assert victim.payload == b"poison"
    assert wire.send() == [b"fine"]
    assert wire.outbox.lost(too_big=False) is None


def test_two_losses_with_progress_between_them_are_bad_luck(wire):
    wire.publish(b"1")
    wire.publish(b"2")
    wire.send()
    wire.outbox.lost(too_big=False)
    wire.send()
    wire.acknowledge(b"1")
    wire.send()
    assert wire.outbox.lost(too_big=False) is None


def test_a_loss_with_nothing_in_flight_clears_the_suspicion(wire):
    wire.publish(b"1")
    wire.send()
    wire.outbox.lost(too_big=False)
    wire.outbox.lost(too_big=False)
    wire.send()
    assert wire.outbox.lost(too_big=False) is None


def test_what_the_caller_no_longer_wants_is_not_sent(wire):
    one, two = wire.publish(b"1"), wire.publish(b"2")
    wire.send()
    wire.outbox.lost(too_big=False)
    one.done.cancel()
    assert wire.send() == [b"2"]
    wire.acknowledge(b"2")
    assert two.done.done()


def test_what_no_longer_fits_fails_when_its_turn_comes(wire):
    big, small = wire.publish(bytes(5000)), wire.publish(b"s")
    assert wire.send(limit=1000) == [b"s"]
    with pytest.raises(PacketTooLarge, match="1000"):
        big.done.result()
    assert not small.done.done()


def test_failing_all_leaves_nothing(wire):
    publications = [wire.publish(b"%d" % n) for n in range(5)]
    wire.send()
    wire.outbox.fail_all(LinkError("over"))
    assert all(isinstance(publication.done.exception(), LinkError) for publication in publications)
    assert wire.send() == []


@given(st.lists(st.sampled_from(["publish", "send", "acknowledge", "lose"]), max_size=60))
def test_everything_is_delivered_at_least_once_and_first_sent_in_order(steps):
    """Whatever happens, as long as no publication is the head of two losses in a row."""
    wire = Wire(window=2)
    made: list[Publication] = []
    head: Publication | None = None
    for step in [*steps, *["send", "acknowledge"] * 70]:
        if step == "publish":
            made.append(wire.publish(b"%d" % len(made)))
        elif step == "send":
            wire.send()
        elif step == "acknowledge" and wire.outbox.oldest is not None:
            wire.acknowledge(wire.outbox.oldest.payload)
            head = None
        elif step == "lose" and (wire.outbox.oldest is None or wire.outbox.oldest is not head):
            head = wire.outbox.oldest
            assert wire.outbox.lost(too_big=False) is None
    assert all(publication.done.done() for publication in made)
    firsts = list(dict.fromkeys(wire.log))
    assert firsts == [publication.payload for publication in made]
