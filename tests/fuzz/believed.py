"""Targets that decide what is believed: signatures, and payloads put together from chunks."""

import hashlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from script import clean_folder, events, reached

from shared.chunks import Assembly, chunk_length
from shared.codec import decode_sealed, encode_message
from shared.errors import DigestMismatch, MalformedMessage, MalformedPayload
from shared.files import not_waiting_for_the_disk
from shared.messages import Blob, CoordinatorState, Sealed
from shared.seal import Verifier, signed_bytes

MOST = 40
"""Events of an input."""

# --- signatures -----------------------------------------------------------------------------------------------------

TOPICS = ("t", "tt", "")
NUMBERS = (1, 2, 3, 4, 5, (ord("t") << 56) + 7)
"""The last one looks like the end of a topic."""
UNSIGNED = encode_message(CoordinatorState(online=True, epoch=1, run="r"))


@cache
def _key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32)


@cache
def _sealed(key: int, topic: str, number: int, body: bytes) -> bytes:
    signature = _key(key).sign(signed_bytes(topic, number, body))
    return encode_message(Sealed(number=number, body=body, signature=signature))


class _PublicKey:
    """Remembers what it found: most of what a fuzzer says, it has said before."""

    def __init__(self, number: int) -> None:
        self._key = _key(number).public_key()
        self._fits = lru_cache(maxsize=1 << 16)(self._look)

    def _look(self, signature: bytes, data: bytes) -> bool:
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True

    def verify(self, signature: bytes, data: bytes) -> None:
        if not self._fits(signature, data):
            raise InvalidSignature

    def public_bytes_raw(self) -> bytes:
        return self._key.public_bytes_raw()


@cache
def _public(number: int) -> Any:
    return _PublicKey(number)


def seals(data: bytes) -> None:
    """Signed by whom it may be, cut, mixed up, flipped, replayed and read as another message, while keys are trusted,
    given up and trusted again across restarts: what a trusted key said on this topic is believed, nothing older than
    what was, and nothing else."""
    trusted: tuple[int, ...] = (0, 1)
    verifier = Verifier(map(_public, trusted))
    said: dict[tuple[str, bytes], tuple[int, int]] = {}
    newest: dict[tuple[int, str], int] = {}
    wire: list[tuple[str, bytes]] = [("t", b"")]
    for script in events(data, MOST):
        kind, topic, pick = script.below(10), script.of(TOPICS), script.below(256)
        if kind == 0:
            trusted = script.of(((0, 1), (0,), (1, 0), (1, 2)))
            verifier = Verifier(map(_public, trusted), verifier.marks)
            newest = {(key, topic): number for (key, topic), number in newest.items() if key in trusted}
            continue
        if kind < 5:
            key, number, body = pick % 3, script.of(NUMBERS), script.of((b"b", b"bb", b"\7b"))
            payload = _sealed(key, topic, number, body)
            said[topic, payload] = key, number
            wire.append((topic, payload))
        else:
            where, payload = wire[-1 - pick % len(wire)]
            topic = topic if kind == 6 else where
            if kind == 7:
                at = script.below(256) % max(1, len(payload))
                payload = payload[:at] + script.take(1) + payload[at + 1 :]
            elif kind == 8:
                payload = script.of((payload[: script.below(256)] + script.take(1), UNSIGNED, payload + b"\0"))
            elif kind == 9 and payload:
                topic, payload = _shifted(topic, payload)
        who, number = said.get((topic, payload), (-1, 0))
        expected = who in trusted and number >= newest.get((who, topic), 0)
        try:
            verifier.open(topic, payload)
        except MalformedMessage as error:
            assert not expected, "it was said, and is not believed"
            reached(kind, error.code, len(newest))
            continue
        assert expected, "it was never said, or is older than what was believed"
        newest[who, topic] = number
        reached(kind, trusted, who, TOPICS.index(topic), NUMBERS.index(number))


def _shifted(topic: str, payload: bytes) -> tuple[str, bytes]:
    """The same signed bytes read with a longer topic, if those of the topic were not counted."""
    sealed = decode_sealed(payload)
    head, rest = sealed.number >> 56, sealed.number & (1 << 56) - 1
    if len(sealed.body) < 2 or chr(head) != "t":
        return topic, payload
    number, body = rest << 8 | sealed.body[0], sealed.body[1:]
    return topic + "t", encode_message(Sealed(number=number, body=body, signature=sealed.signature))


# --- transfers ------------------------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 12


def _blob(data: bytes, chunk: int) -> Blob:
    return Blob(digest=hashlib.sha256(data).hexdigest(), size=len(data), chunk=chunk)


DATA = {
    _blob(data, chunk): data
    for data, chunk in ((CONTENT, 512), (CONTENT[::-1], 512), (CONTENT[5:], 1024), (CONTENT[:1024], 1024))
}
"""Two of them differ in nothing but their bytes."""
BLOBS = tuple(DATA)


class _Transfer:
    """An assembly, and what must be so: `have` is there, `wrong` of it with other bytes, `saved` would be after a
    restart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished: Blob | None = None
        self.kept: tuple[Blob, set[int], set[int]] = BLOBS[0], set(), set()
        """What `.have` claims, and which chunks of it have other bytes."""
        self.open(BLOBS[0])

    def open(self, blob: Blob) -> None:
        self.blob, self.assembly = blob, Assembly(self.path, blob)
        whole = set(range(blob.chunks))
        if self.finished == blob:
            self.have, self.wrong = whole, set[int]()
        elif self.kept[0] == blob:
            self.have, self.wrong = set(self.kept[1]), set(self.kept[2])
        else:
            self.have, self.wrong = set[int](), set[int]()
        self.kept = blob, set(self.have) if self.finished != blob else set(), set(self.wrong)

    def add(self, index: int, *, wrong: bool) -> None:
        part = DATA[self.blob][index * self.blob.chunk : (index + 1) * self.blob.chunk]
        try:
            new = self.assembly.add(index, part[::-1] if wrong else part)
        except MalformedPayload:
            assert index >= self.blob.chunks
            return
        assert new == (index not in self.have)
        if new:
            self.have.add(index)
            self.wrong |= {index} if wrong else set()

    def refuse(self, index: int, part: bytes) -> None:
        try:
            self.assembly.add(index, part)
        except MalformedPayload:
            return
        raise AssertionError("a chunk of another length was taken")

    def save(self) -> None:
        self.assembly.save()
        if self.finished != self.blob:
            self.kept = self.blob, set(self.have), set(self.wrong)

    def damage(self, name: str, size: int) -> None:
        """While nobody is at it, the file loses its end."""
        path = self.path.with_name(f"{self.path.name}.{name}")
        if path.exists() and path.stat().st_size > size:
            path.write_bytes(path.read_bytes()[:size])
            self.kept = self.blob, set(), set()
        self.open(self.blob)

    def finish(self) -> None:
        if not self.assembly.complete:
            return
        try:
            found = self.assembly.finish().read_bytes()
        except DigestMismatch:
            assert self.wrong
            self.have, self.wrong, self.kept = set(), set(), (self.blob, set(), set())
            return
        assert found == DATA[self.blob]
        assert not self.wrong
        self.finished, self.kept = self.blob, (self.blob, set(), set())

    def check(self) -> None:
        blob, assembly = self.blob, self.assembly
        assert assembly.complete == (len(self.have) == blob.chunks)
        assert assembly.received == sum(chunk_length(blob, index) for index in self.have)
        missing = [index for first, end in assembly.missing() for index in range(first, end)]
        assert missing == [index for index in range(blob.chunks) if index not in self.have]
        assert assembly.missing(1) == assembly.missing()[:1]


def chunks(data: bytes) -> None:
    """An assembly whose chunks come in any order, wrong, twice, across restarts and damage, and for another payload
    meanwhile: it has exactly what came, or was saved before a restart, and ends as the payload that was announced."""
    with not_waiting_for_the_disk():
        transfer = _Transfer(clean_folder() / "payload")
        for script in events(data, MOST):
            kind, pick = script.below(12), script.below(8)
            match kind:
                case 0 | 1 | 2 | 3:
                    transfer.add(pick, wrong=script.below(6) == 1)
                case 4:  # all but one of them
                    for index in range(transfer.blob.chunks):
                        if index != pick:
                            transfer.add(index, wrong=False)
                case 5:
                    transfer.refuse(script.below(12), script.take(1) * pick)
                case 6:
                    transfer.save()
                case 7:
                    transfer.open(transfer.blob)
                case 8:
                    transfer.open(script.of(BLOBS))
                case 9:
                    transfer.damage(script.of(("have", "part")), script.below(64))
                case _:
                    transfer.finish()
            transfer.check()
            reached(kind, transfer.blob.chunks, len(transfer.have), len(transfer.wrong), transfer.kept[1] ==
                    transfer.have, transfer.finished == transfer.blob)  # fmt: skip
