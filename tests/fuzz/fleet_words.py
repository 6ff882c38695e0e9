"""What the devices of a fleet say to its coordinator, as bytes, each made once."""

import hashlib
from functools import cache

from shared.codec import encode_message
from shared.messages import Blob, Capabilities, Chunk, Failure, Offer, Presence, Report, Want

DEVICES = ("a", "b", "c")
PIECE = 512


@cache
def content(device: str, number: int) -> bytes:
    """What this device would upload for that round: two chunks."""
    return hashlib.sha256(f"{device}{number}".encode()).digest() * 30


@cache
def blob(device: str, number: int) -> Blob:
    data = content(device, number)
    return Blob(digest=hashlib.sha256(data).hexdigest(), size=len(data), chunk=PIECE)


@cache
def offer(device: str, number: int, run: str = "r") -> bytes:
    return encode_message(Offer(run=run, round=number, blob=blob(device, number)))


@cache
def chunk(device: str, number: int, index: int, *, wrong: bool = False) -> bytes:
    data = content(device, number)[index * PIECE : (index + 1) * PIECE] or b"x"
    return encode_message(Chunk(digest=blob(device, number).digest, index=index, data=data[::-1] if wrong else data))


@cache
def report(number: int, run: str = "r") -> bytes:
    return encode_message(Report(run=run, round=number, examples=1, metrics={}))


@cache
def presence(epoch: int, online: bool, asleep_s: float | None = None, train: bool = True) -> bytes:
    able = Capabilities(profile="p", train=train, examples=1)
    return encode_message(
        Presence(online=online, epoch=epoch, asleep_s=asleep_s, capabilities=able if online else None)
    )


@cache
def failure(number: int, run: str) -> bytes:
    return encode_message(Failure(run=run, round=number, code="c", reason="why"))


@cache
def want(device: str, number: int, last: int) -> bytes:
    return encode_message(Want(run="r", digest=blob(device, number).digest, ranges=((0, 1 + last),)))
