"""What is signed, what a verifier believes, and what neither a restart nor a clock takes back."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given
from hypothesis import strategies as st
from keys import key_file

from shared.codec import decode_sealed, encode_message, unsealed
from shared.errors import ConfigError, Forged, MalformedMessage, Replayed, Unsigned
from shared.messages import Receipt, Sealed
from shared.seal import RESERVED, Signer, Verifier, public_line, read_public_keys, signed_bytes

RECEIPT = encode_message(Receipt(run="r", round=1, answers="offer", accepted=True))
TOPIC = "fleet/down/kitchen"


def public(signer: Signer, path: Path):
    path.write_text(f"# the coordinator of the plant\n\n{signer.public} since May\n")
    return read_public_keys(path)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(key_file(tmp_path / "signing.key"))


@pytest.fixture
def verifier(signer: Signer, tmp_path: Path) -> Verifier:
    return Verifier(public(signer, tmp_path / "coordinator.pub"))


def test_what_was_sealed_is_believed_on_its_topic_alone(signer, verifier):
    sealed = signer.seal(TOPIC, RECEIPT)
    assert verifier.open(TOPIC, sealed) == RECEIPT
    assert unsealed(sealed) == RECEIPT == unsealed(RECEIPT)
    with pytest.raises(Forged, match="fleet/down/bathroom"):
        verifier.open("fleet/down/bathroom", sealed)


def test_no_bit_may_differ(signer, verifier):
    genuine = decode_sealed(signer.seal(TOPIC, RECEIPT))
    for changed in (
        {"number": genuine.number + 1},
        {"body": bytes([genuine.body[0] ^ 1]) + genuine.body[1:]},
        {"body": genuine.body + b"\0"},
        {"signature": bytes([genuine.signature[0] ^ 1]) + genuine.signature[1:]},
    ):
        with pytest.raises(Forged):
            verifier.open(TOPIC, encode_message(genuine.model_copy(update=changed)))
    assert verifier.open(TOPIC, encode_message(genuine)) == RECEIPT, "and what was forged left no mark"


def test_unsigned_and_nonsense_are_told_apart(verifier):
    with pytest.raises(Unsigned, match="receipt") as refused:
        verifier.open(TOPIC, RECEIPT)
    assert refused.value.code == "unsigned"
    for nonsense in (b"", b"\x80", encode_message(Sealed(number=1, body=b"x", signature=bytes(64)))[:-1]):
        with pytest.raises(MalformedMessage):
            verifier.open(TOPIC, nonsense)


def test_a_stranger_who_signs_is_not_believed(verifier, tmp_path):
    with pytest.raises(Forged):
        verifier.open(TOPIC, Signer(key_file(tmp_path / "stranger.key")).seal(TOPIC, RECEIPT))


def test_an_older_message_is_a_replay_and_the_same_one_is_not(signer, verifier):
    first, second = signer.seal(TOPIC, RECEIPT), signer.seal(TOPIC, RECEIPT)
    assert verifier.open(TOPIC, first) == verifier.open(TOPIC, first) == verifier.open(TOPIC, second) == RECEIPT
    with pytest.raises(Replayed):
        verifier.open(TOPIC, first)
    assert verifier.open(TOPIC, second) == RECEIPT
    assert verifier.open("fleet/coordinator", signer.seal("fleet/coordinator", RECEIPT, 1)) == RECEIPT, "own order"


def test_marks_outlive_the_verifier(signer, verifier, tmp_path):
    first, second = signer.seal(TOPIC, RECEIPT), signer.seal(TOPIC, RECEIPT)
    verifier.open(TOPIC, second)
    after = Verifier(public(signer, tmp_path / "coordinator.pub"), verifier.marks)
    with pytest.raises(Replayed):
        after.open(TOPIC, first)
    assert after.open(TOPIC, second) == RECEIPT


def test_a_key_that_is_added_is_believed_and_one_that_is_gone_is_not(signer, verifier, tmp_path):
    """Rotation: both keys for a while, each with marks of its own; then the new one alone."""
    old = signer.seal(TOPIC, RECEIPT)
    verifier.open(TOPIC, old)
    new = Signer(key_file(tmp_path / "new.key"), clock=lambda: 1.0)  # its numbers start far below
    both = tmp_path / "both.pub"
    both.write_text(f"{signer.public}\n{new.public}\n")
    during = Verifier(read_public_keys(both), verifier.marks)
    assert during.open(TOPIC, old) == during.open(TOPIC, new.seal(TOPIC, RECEIPT)) == RECEIPT
    after = Verifier(public(new, tmp_path / "new.pub"), during.marks)
    with pytest.raises(Forged):
        after.open(TOPIC, old)
    assert list(after.marks) == [new.public]


def test_numbers_grow_through_restarts_and_clocks_that_jump(tmp_path):
    """2040 for a while, then 1970: devices that have seen the first are not locked out by the second."""
    path = key_file(tmp_path / "signing.key")
    numbers = []
    for now in (1_000.0, 2_208_988_800.0, 0.0, 1_000.0, 0.0):
        signer = Signer(path, clock=lambda now=now: now)
        numbers += [signer.number() for _ in range(3)]
    assert numbers == sorted(set(numbers))
    assert numbers[3] - 2_208_988_800_000 in (0, 1), "the clock is believed where it grows"


def test_a_restart_without_the_last_writes_gives_no_number_twice(tmp_path):
    path = key_file(tmp_path / "signing.key")
    signer = Signer(path, clock=lambda: 5.0)
    mark = (tmp_path / "signing.key.number").read_text()
    given_out = [signer.number() for _ in range(RESERVED - 10)]
    assert (tmp_path / "signing.key.number").read_text() == mark, "no write for each message"
    assert Signer(path, clock=lambda: 5.0).number() > given_out[-1]
    given_out += [signer.number() for _ in range(3 * RESERVED)]
    assert Signer(path, clock=lambda: 5.0).number() > given_out[-1]
    assert len(set(given_out)) == len(given_out)


def test_two_signers_of_one_key_never_overlap_blocks(tmp_path):
    path = key_file(tmp_path / "signing.key")
    one, two = (Signer(path, clock=lambda: 5.0) for _ in range(2))
    numbers = [signer.number() for _ in range(RESERVED + 100) for signer in (one, two)]
    assert len(set(numbers)) == len(numbers)


def test_keys_that_cannot_be_used_are_named(tmp_path, signer):
    with pytest.raises(ConfigError, match=r"nowhere\.key"):
        Signer(tmp_path / "nowhere.key")
    with pytest.raises(ConfigError, match="not Ed25519"):
        Signer(key_file(tmp_path / "ec.key", generate_private_key(SECP256R1())))
    (tmp_path / "signing.key.number").write_text("many")
    with pytest.raises(ConfigError, match=r"signing\.key\.number"):
        Signer(tmp_path / "signing.key")
    for text, reason in (("", "no public key"), ("ed25519 AAAA", "line 1"), (f"\nssh-{signer.public}", "line 2")):
        (tmp_path / "bad.pub").write_text(text)
        with pytest.raises(ConfigError, match=reason):
            read_public_keys(tmp_path / "bad.pub")


@given(st.tuples(st.text(max_size=9), st.integers(0, 2**63 - 1), st.binary(max_size=20)), st.data())
def test_no_two_statements_have_the_same_bytes(one, data):
    """Wherever the border between topic and body is put."""
    topic, number, body = one
    cut = data.draw(st.integers(0, len(body)))
    other = topic + body[:cut].decode("latin-1"), number, body[cut:]
    assert (signed_bytes(*one) == signed_bytes(*other)) == (one == other)


def test_a_line_is_the_key(signer, tmp_path):
    (key,) = public(signer, tmp_path / "coordinator.pub")
    assert public_line(key) == signer.public
