"""Topics: who writes where, and what a hostile topic level could do."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigError, MalformedMessage
from shared.topics import SHARDS, Topics, check_name, shard

TOPICS = Topics("fleet-1")
DIGEST = "0123456789abcdef" * 4
names = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=64)


def test_topics_are_what_they_always_were() -> None:
    assert TOPICS.coordinator == "fleet-1/coordinator"
    assert TOPICS.presence("pi") == "fleet-1/presence/pi"
    assert TOPICS.task("pi") == "fleet-1/task/pi"
    assert TOPICS.up("pi") == "fleet-1/up/53/pi"  # crc32 of "pi" modulo 64, and for ever
    assert TOPICS.down("pi") == "fleet-1/down/pi"
    assert TOPICS.chunk(DIGEST, 2, 37) == f"fleet-1/blob/{DIGEST}/2/37"
    assert TOPICS.page(DIGEST, 2) == f"fleet-1/blob/{DIGEST}/2/+"
    assert TOPICS.infer("pi") == "fleet-1/infer/pi"
    assert TOPICS.inferred("pi") == "fleet-1/inferred/pi"


@given(names)
def test_the_sender_is_read_from_the_topics_that_devices_write_to(device: str) -> None:
    assert 0 <= shard(device) < SHARDS
    assert TOPICS.sender(TOPICS.up(device)) == TOPICS.sender(TOPICS.presence(device)) == device


@pytest.mark.parametrize(
    "topic",
    [
        "fleet-1/up/54/pi",  # not the shard of this device
        "fleet-1/up/053/pi",
        "fleet-1/up/53/pi/more",
        "fleet-1/up/53/",
        "fleet-1/up/53/p i",
        "fleet-1/presence/../x",
        "fleet-1/presence/pi\n",
        "fleet-1/presence/" + "p" * 65,
        "fleet-1/task/pi",
        "fleet-1/down/pi",
        "fleet-2/presence/pi",
        "presence/pi",
        "",
    ],
)
def test_no_other_topic_has_a_sender(topic: str) -> None:
    with pytest.raises(MalformedMessage):
        TOPICS.sender(topic)


def test_a_chunk_is_found_in_its_topic() -> None:
    assert TOPICS.chunk_index(TOPICS.chunk(DIGEST, 2, 37)) == (DIGEST, 37)


@pytest.mark.parametrize(
    "topic",
    [
        f"fleet-1/blob/{DIGEST}/2",
        f"fleet-1/blob/{DIGEST.upper()}/2/37",
        f"fleet-1/blob/{DIGEST[:-1]}/2/37",
        f"fleet-1/blob/{DIGEST}/2/-1",
        f"fleet-1/blob/{DIGEST}/2/٣",
        f"fleet-1/blob/{DIGEST}/2/1234567890",
        f"fleet-2/blob/{DIGEST}/2/37",
    ],
)
def test_no_other_topic_has_a_chunk(topic: str) -> None:
    with pytest.raises(MalformedMessage):
        TOPICS.chunk_index(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "$SYS", "a b", "ä", "..", "a\n", "x" * 65])
def test_what_could_not_be_one_topic_level_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        check_name("device", name)
    with pytest.raises(ConfigError):
        Topics(name)
