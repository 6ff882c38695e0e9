"""What `watch` makes of single messages: signed, forged, replayed, malformed, in pieces, from anywhere."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from coordinator.cli import cli
from coordinator.narrator import line
from coordinator.watch import KINDS, PENDING, Seen, Watcher
from shared.codec import encode_message
from shared.link import Received, packet_size
from shared.messages import Blob, Chunk, Failure, Offer, Receipt
from shared.seal import Signer, Verifier, read_public_keys
from shared.topics import Topics

TOPICS = Topics("plant")
RECEIPT = encode_message(Receipt(run="r", round=4, answers="offer", accepted=False, code="stale", reason="no\x1b[2J"))
DIGEST = "3f" * 32


def signer(folder: Path, name: str = "key") -> Signer:
    path = folder / name
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Signer(path)


def believing(folder: Path, key: Signer) -> Verifier:
    (folder / "pub").write_text(key.public + "\n")
    return Verifier(read_public_keys(folder / "pub"))


def one(watcher: Watcher, topic: str, payload: bytes) -> Seen:
    (found,) = watcher.see(Received(topic, payload), 0.0)
    return found


def test_signatures_are_told(tmp_path: Path) -> None:
    ours, theirs = signer(tmp_path), signer(tmp_path, "other")
    watcher, topic = Watcher(TOPICS, verifier=believing(tmp_path, ours)), TOPICS.down("a")
    old, new = ours.seal(topic, RECEIPT), ours.seal(topic, RECEIPT)
    assert one(watcher, topic, new).seal == "signed"
    assert one(watcher, topic, old).seal == "replayed"
    assert one(watcher, topic, theirs.seal(topic, RECEIPT)).seal == "forged"
    assert one(watcher, TOPICS.down("b"), new).seal == "forged"  # signed for another device
    assert one(watcher, topic, RECEIPT).seal == "unsigned"
    assert one(watcher, TOPICS.up("a"), encode_message(Failure(run="r", round=1, code="c", reason=""))).seal == ""
    blind = one(Watcher(TOPICS), topic, new)
    assert (blind.seal, blind.kind, blind.fields["code"]) == ("sealed", "receipt", "stale")
    assert all(one(watcher, topic, each).kind == "receipt" for each in (old, RECEIPT))


def test_a_line_says_what_matters() -> None:
    offer = Offer(run="r", round=4, blob=Blob(digest=DIGEST, size=200_000, chunk=122_368))
    seen = one(Watcher(TOPICS), TOPICS.up("a"), encode_message(offer))
    assert (seen.kind, seen.device, seen.text) == ("offer", "a", "run=r round=4 blob=3f3f3f3f..(200 kB)")
    assert one(Watcher(TOPICS), TOPICS.down("a"), RECEIPT).text.endswith(r"code=stale reason=no\x1b[2J")
    assert one(Watcher(TOPICS), TOPICS.task("a"), b"").kind == "cleared"


def test_chunks_are_summed_up_until_something_else_comes_or_nothing() -> None:
    watcher, topic = Watcher(TOPICS), TOPICS.up("a")
    sizes = 0
    for index in range(16):
        chunk = encode_message(Chunk(digest=DIGEST, index=index, data=bytes(1000)))
        sizes += packet_size(topic, len(chunk))
        assert list(watcher.see(Received(topic, chunk), 0.0)) == []
    first, second = watcher.see(Received(TOPICS.down("a"), RECEIPT), 0.5)
    assert (first.kind, first.bytes, first.fields, second.kind) == ("chunk", sizes, {"chunks": 16}, "receipt")
    for index in range(32, 48):
        assert list(watcher.see(Received(TOPICS.chunk(DIGEST, 2, index), bytes(100_000)), 1.0)) == []
    assert list(watcher.rest(1.5)) == []
    (page,) = watcher.rest(2.0)
    assert page.text == "3f3f3f3f.. page 2: 16 chunks, 1.6 MB"


def test_its_memory_is_bounded() -> None:
    watcher = Watcher(TOPICS)
    lines = [
        line
        for page in range(3 * PENDING)
        for line in watcher.see(Received(TOPICS.chunk(DIGEST, page, 16 * page), b"x"), 0.0)
    ]
    assert len(lines) == 2 * PENDING
    assert len(list(watcher.rest(9.0))) == PENDING


def test_only_what_was_asked_for() -> None:
    watcher = Watcher(TOPICS, ["receipt"], "a")
    assert set(watcher.filters()) == {
        *(f"plant/{name}/a" for name in ("presence", "vitals", "task", "down", "infer", "inferred")),
        TOPICS.up("a"),
    }
    assert "plant/blob/#" not in Watcher(TOPICS, ["receipt"]).filters()
    assert "plant/blob/#" in Watcher(TOPICS).filters()
    assert len(list(watcher.see(Received(TOPICS.down("a"), RECEIPT), 0.0))) == 1
    assert list(watcher.see(Received(TOPICS.task("a"), b""), 0.0)) == []


@given(st.text(max_size=60), st.binary(max_size=300))
def test_whatever_comes_is_one_printable_line(topic: str, payload: bytes) -> None:
    for name in (topic, f"plant/{topic}", TOPICS.up("a"), f"plant/blob/{topic}"):
        watcher = Watcher(TOPICS)
        lines = [*watcher.see(Received(name, payload), 0.0), *watcher.rest(9.0)]
        assert all((each.text + each.device).isprintable() and each.kind in KINDS for each in lines)
        assert len(lines) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kind", "offer,ofer"], "'ofer' is none of"),
        (["--device", "a/b"], "device 'a/b'"),
        (["--set", "broker.url=embedded"], "broker.url=mqtt://127.0.0.1:PORT"),
        (["--key", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_use_is_named(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli, ["watch", "--set", "broker.url=mqtt://localhost:1", *arguments])
    assert said in str(done.exception)


def test_what_a_device_says_stays_on_its_line_for_people_too() -> None:
    reason = "out of memory\nround 3 closed: 9 of 9 updates\x1b[2J"
    said = line({"event": "failed", "device": "a", "round": 2, "code": "c", "reason": reason})
    assert said == r"a failed in round 2: c, out of memory\nround 3 closed: 9 of 9 updates\x1b[2J"
