"""What a PUBLISH takes on the wire, against bytes written down by hand from the MQTT 5 standard (section 3.3)."""

import pytest

from shared.link import packet_size


def test_a_packet_written_down_by_hand() -> None:
    """Topic "a/b", packet number 10, no properties, payload "hi": 32 0a 00 03 61 2f 62 00 0a 00 68 69."""
    assert packet_size("a/b", len(b"hi")) == len(bytes.fromhex("320a0003612f62000a006869"))
    assert packet_size("a/b", len(b"hi"), qos=0) == len(bytes.fromhex("30080003612f62006869"))


@pytest.mark.parametrize(
    ("remaining", "digits"), [(127, 1), (128, 2), (16_383, 2), (16_384, 3), (2_097_151, 3), (2_097_152, 4)]
)
def test_the_remaining_length_takes_seven_bits_a_byte(remaining: int, digits: int) -> None:
    """The bounds of table 2-1 of the standard."""
    assert packet_size("topic", remaining - 10) == 1 + digits + remaining


def test_a_topic_counts_its_bytes_and_not_its_letters() -> None:
    assert packet_size("ü", 0) == packet_size("ue", 0)
