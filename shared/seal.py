"""Signed messages: the coordinator seals what it says, devices believe nothing else (Ed25519, RFC 8032).

What is signed is unambiguous, so that no message can be read as another one, and none is believed on another topic:

    b"talaria/1\\0" | bytes of the topic, u32 | topic | number, u64 | body          (big-endian)

The number makes replays visible: a verifier remembers, per key and topic, the largest that it believed, and refuses
smaller ones. An equal one is the same statement again, as brokers deliver things twice. Numbers are milliseconds of the
wall clock where that grows, and count on where it does not; the signer keeps a mark beside its key that no restart and
no clock takes back.
"""

import base64
import binascii
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from shared.codec import decode_any, encode_message
from shared.errors import ConfigError, Forged, Replayed, Unsigned
from shared.files import atomic_write
from shared.messages import Sealed

DOMAIN = b"talaria/1\0"
RESERVED = 60_000
"""Numbers that one write of the mark reserves: a write a minute, up to a thousand messages a second."""
KIND = "ed25519"

Marks = Mapping[str, Mapping[str, int]]
"""Public key -> topic -> the largest number that was believed."""


def signed_bytes(topic: str, number: int, body: bytes) -> bytes:
    """What the signature of a sealed message covers."""
    name = topic.encode()
    return DOMAIN + struct.pack("!I", len(name)) + name + struct.pack("!Q", number) + body


class Signer:
    """Seals with the private key of a file (PKCS #8, PEM). One process per key, unless each has topics of its own.

    `{key file}.number` is the mark: at least as large as every number that was ever given out.
    """

    def __init__(self, key_file: Path, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since 1970. ConfigError if the key cannot be used, or its mark not be kept."""
        try:
            key = load_pem_private_key(key_file.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"cannot use the signing key {str(key_file)!r}: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(
                f"the signing key {str(key_file)!r} is not Ed25519: `talaria-coordinator enrol` makes one"
            )
        self._key = key
        self._mark = key_file.with_name(key_file.name + ".number")
        self._clock = clock
        self._last, self._reserved = self._reserve(int(clock() * 1000))

    @property
    def public(self) -> str:
        """The line of a file of public keys."""
        return public_line(self._key.public_key())

    def number(self) -> int:
        """The next number; larger than all before it, of this process and of earlier ones."""
        self._last = max(self._last + 1, int(self._clock() * 1000))
        if self._last > self._reserved:
            self._last, self._reserved = self._reserve(self._last)
        return self._last

    def seal(self, topic: str, body: bytes, number: int | None = None) -> bytes:
        """The message on the wire. `number`: one that `number` gave out, for statements that do not replace each other
        in a known order; a new one by default."""
        number = self.number() if number is None else number
        signature = self._key.sign(signed_bytes(topic, number, body))
        return encode_message(Sealed(number=number, body=body, signature=signature))

    def _reserve(self, number: int) -> tuple[int, int]:
        """(the number to go on from, the largest that may be given out now), durably. Another process may have reserved
        numbers meanwhile: those are skipped."""
        lock = None
        try:
            lock = os.open(self._mark.with_name(f".{self._mark.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = int(self._mark.read_text()) if self._mark.exists() else 0
            number = max(number, before + 1)
            atomic_write(self._mark, f"{number + RESERVED}\n".encode())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot keep the mark of the signing key, {str(self._mark)!r} ({error}): "
                "its folder must be writable, and the file must hold a number"
            ) from error
        finally:
            if lock is not None:
                os.close(lock)
        return number, number + RESERVED


class Verifier:
    """Believes what one of these keys has signed, in the order in which it was said. Touches no file.

    marks  what was believed before, from `marks` of an earlier verifier: keys that are no longer trusted are forgotten
    """

    def __init__(self, keys: Iterable[Ed25519PublicKey], marks: Marks | None = None) -> None:
        self._keys = {public_line(key): key for key in keys}
        self._marks = {line: dict((marks or {}).get(line, {})) for line in self._keys}

    @property
    def marks(self) -> Marks:
        return self._marks

    def open(self, topic: str, payload: bytes) -> bytes:
        """The body. Unsigned for a message that is not sealed, Forged where no key fits the topic and the bytes,
        Replayed for an older number; MalformedMessage for what is no message at all."""
        sealed = decode_any(payload)
        if not isinstance(sealed, Sealed):
            raise Unsigned(
                f"an unsigned {sealed.kind} on {topic!r}: the coordinator signs where it has run.signing_key"
            )
        data = signed_bytes(topic, sealed.number, sealed.body)
        for line, key in self._keys.items():
            try:
                key.verify(sealed.signature, data)
            except InvalidSignature:
                continue
            last = self._marks[line].get(topic, 0)
            if sealed.number < last:
                raise Replayed(f"number {sealed.number} on {topic!r} is older than {last}, which was believed before")
            self._marks[line][topic] = sealed.number
            return sealed.body
        raise Forged(f"none of {len(self._keys)} known keys has signed the message on {topic!r}: is it an old key?")


def public_line(key: Ed25519PublicKey) -> str:
    """The key as a line of a file of public keys."""
    return f"{KIND} {base64.b64encode(key.public_bytes_raw()).decode()}"


def read_public_keys(path: Path) -> tuple[Ed25519PublicKey, ...]:
    """The keys of a file: one `ed25519 BASE64` per line, with any comment after it; lines with `#` are left out.

    ConfigError where the file cannot be read, a line is no key, or there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the public keys {str(path)!r}: {error}") from error
    keys = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            if words[0] != KIND or len(words) < 2:
                raise ValueError(f"it is not `{KIND} BASE64`")
            keys.append(Ed25519PublicKey.from_public_bytes(base64.b64decode(words[1], validate=True)))
        except (ValueError, binascii.Error) as error:
            raise ConfigError(f"line {number} of {str(path)!r} is no public key: {error}") from error
    if not keys:
        raise ConfigError(f"{str(path)!r} holds no public key: copy coordinator.pub of the authority")
    return tuple(keys)
