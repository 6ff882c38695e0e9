"""A device with the coordinator's key does what was signed, whatever a broker that others write to makes it hear."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from keys import key_file
from scripted import make_task

from coordinator.voice import Voice
from edge_agent.ears import MARKS, Ears
from shared.codec import encode_message
from shared.errors import ConfigError, Forged, MalformedMessage, Replayed, Unsigned
from shared.messages import Chunk, CoordinatorState, Grant, Message, Receipt
from shared.seal import Signer
from shared.topics import Topics

TOPICS = Topics("plant")
STATE, TASK, DOWN = TOPICS.coordinator, TOPICS.task("kitchen"), TOPICS.down("kitchen")
RECEIPT = Receipt(run="run", round=1, answers="offer", accepted=True)
CHUNK = Chunk(digest="a" * 64, index=0, data=b"x")
Hear = Callable[[Ears, Voice, Message], object]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """(signing key, file of public keys)."""
    path = key_file(tmp_path / "signing.key")
    (tmp_path / "coordinator.pub").write_text(Signer(path).public + "\n")
    return path, tmp_path / "coordinator.pub"


@pytest.fixture
def voice(keys) -> Voice:
    return Voice(keys[0])


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def ears(keys, state_dir) -> Ears:
    return Ears(keys[1], state_dir)


def state(epoch: int = 1, *, online: bool = True) -> CoordinatorState:
    return CoordinatorState(online=online, epoch=epoch, run="run")


def test_everything_signed_is_understood(ears, voice):
    assert ears.coordinator(STATE, voice(STATE, state())) == state()
    assert ears.task(TASK, voice(TASK, make_task())) == make_task()
    assert ears.downlink(DOWN, voice(DOWN, RECEIPT)) == RECEIPT
    assert ears.downlink(DOWN, encode_message(CHUNK)) == CHUNK, "its digest is in a signed task"


def test_nothing_unsigned_is(ears):
    grant = Grant(run="run", digest="a" * 64, ranges=((0, 1),))
    for hear, topic, message in (
        (ears.coordinator, STATE, state()),
        (ears.task, TASK, make_task()),
        (ears.downlink, DOWN, RECEIPT),
        (ears.downlink, DOWN, grant),
    ):
        with pytest.raises(Unsigned):
            hear(topic, encode_message(message))


def test_nothing_that_was_changed_is(ears, voice):
    genuine = voice(TASK, make_task())
    assert ears.task(TASK, genuine)
    for place in range(0, len(genuine), 7):
        changed = bytearray(genuine)
        changed[place] ^= 0x10
        with pytest.raises(MalformedMessage):
            ears.task(TASK, bytes(changed))


def test_no_message_is_taken_for_one_of_another_topic(ears, voice):
    """The task of another device, a receipt as a task, another fleet's."""
    for topic in (TOPICS.task("hall"), DOWN, Topics("other").task("kitchen")):
        with pytest.raises(Forged):
            ears.task(TASK, voice(topic, make_task()))


def test_an_old_task_is_refused_also_after_a_reboot(keys, ears, voice, state_dir):
    old, new = voice(TASK, make_task(1)), voice(TASK, make_task(2))
    ears.task(TASK, new)
    rebooted = Ears(keys[1], state_dir)
    for each in (ears, rebooted):
        with pytest.raises(Replayed):
            each.task(TASK, old)
        assert each.task(TASK, new) == make_task(2), "the retained one comes with every connection"


def test_an_old_receipt_is_refused_also_after_a_reboot(keys, ears, voice, state_dir):
    """It would settle an update of a second try that never arrived."""
    old, new = voice(DOWN, RECEIPT), voice(DOWN, RECEIPT)
    ears.downlink(DOWN, new)
    with pytest.raises(Replayed):
        Ears(keys[1], state_dir).downlink(DOWN, old)


def test_the_last_will_of_this_start_is_believed_and_that_of_an_earlier_one_is_not(keys, ears):
    """The broker publishes it after everything else, and it was signed before."""
    first = Voice(keys[0])
    will = first(STATE, state(1, online=False))
    assert ears.coordinator(STATE, first(STATE, state(1)))
    ears.task(TASK, first(TASK, make_task()))
    assert not ears.coordinator(STATE, will).online
    assert ears.coordinator(STATE, first(STATE, state(1))).online, "back again after a lost link"
    second = Voice(keys[0])
    assert ears.coordinator(STATE, second(STATE, state(2))).online
    with pytest.raises(Replayed):
        ears.coordinator(STATE, will)


def test_marks_are_written_for_what_counts_and_not_for_each_message(ears, voice, state_dir):
    ears.coordinator(STATE, voice(STATE, state()))
    ears.downlink(DOWN, voice(DOWN, Grant(run="run", digest="a" * 64, ranges=((0, 1),))))
    assert not (state_dir / MARKS).exists()
    task = voice(TASK, make_task())
    ears.task(TASK, task)
    written = (state_dir / MARKS).stat().st_ino
    ears.task(TASK, task)
    assert (state_dir / MARKS).stat().st_ino == written, "the same one again"
    (by_topic,) = json.loads((state_dir / MARKS).read_bytes()).values()
    assert set(by_topic) == {STATE, DOWN, TASK}


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": 1}', b'{"a": {"b": "x"}}', b"\xff"])
def test_damaged_marks_make_no_device_deaf(keys, voice, state_dir, content, caplog):
    (state_dir / MARKS).write_bytes(content)
    assert Ears(keys[1], state_dir).task(TASK, voice(TASK, make_task()))
    assert "damaged" in caplog.text


def test_a_full_disk_makes_no_device_deaf(keys, voice, tmp_path, caplog):
    ears = Ears(keys[1], tmp_path / "nowhere")
    assert ears.task(TASK, voice(TASK, make_task()))
    assert "cannot note" in caplog.text


def test_a_device_without_keys_hears_both(voice, state_dir):
    ears = Ears(None, state_dir)
    assert ears.task(TASK, voice(TASK, make_task())) == ears.task(TASK, encode_message(make_task())) == make_task()
    assert ears.downlink(DOWN, voice(DOWN, RECEIPT)) == ears.downlink(DOWN, encode_message(RECEIPT)) == RECEIPT


def test_refusals_are_counted_and_told_once_per_kind(ears, voice, caplog):
    for _ in range(3):
        for error in (Unsigned("a"), Forged("b")):
            ears.refuse(TASK, error)
    assert ears.refused == {"unsigned": 3, "forged": 3}
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 2


def test_keys_that_cannot_be_read_are_an_error_of_the_settings(tmp_path, state_dir):
    with pytest.raises(ConfigError, match=r"nowhere\.pub"):
        Ears(tmp_path / "nowhere.pub", state_dir)
