"""Messages and payloads as bytes, and back. Bytes from outside become something valid, or MalformedMessage or
MalformedPayload, whatever they are: no length in them is believed before it is checked, and nothing is executed.

A message is one msgpack map: its fields, and the protocol version as `v`. A payload is

    b"TLR1" | header length, u32 | header: msgpack map of PayloadHeader | zeros | tensor | zeros | tensor ...

little-endian, each tensor raw in C order and starting at a multiple of 64 bytes, nothing after the last. In a lossy
encoding (shared.encoding) some tensors are coded, no zeros are between them, and all of them may be compressed.
"""

import io
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, Required, TypedDict, TypeVar, Unpack

import msgpack
import numpy as np
from pydantic import TypeAdapter, ValidationError

from shared.encoding import Encoding
from shared.errors import MalformedMessage, MalformedPayload
from shared.messages import (
    PROTOCOL,
    AnyMessage,
    CoordinatorState,
    Downlink,
    InferReply,
    InferRequest,
    Message,
    Presence,
    Sealed,
    Task,
    Uplink,
    Vitals,
)
from shared.payload_body import ALIGNMENT, alignment, check_header, decode_tensors, encode_tensors
from shared.payload_header import PayloadHeader
from shared.tensors import Masks, Subnet
from shared.unpack import check_version, reason, unpack_map

T = TypeVar("T")

MAX_ITEMS = 1024
"""Entries of one array or map in a message."""
MAX_TENSORS = 65_536
"""Entries of one array or map in a payload's header."""
MAX_HEADER = 1 << 20
"""Bytes of a payload's header: what parsing one may cost is bounded by this, not by its sender."""
MAGIC = b"TLR1"


def size_limit(sizes: Iterable[int]) -> int:
    """Bytes of the largest payload of tensors that take these bytes each: what a receiver of them sets as its limit."""
    return MAX_HEADER + sum(size + ALIGNMENT for size in sizes)


def encode_message(message: Message) -> bytes:
    """The message on the wire."""
    encoded: bytes = msgpack.packb({"v": PROTOCOL, **message.model_dump()})
    return encoded


class Decoder(Generic[T]):
    """Bytes -> a message of one of the kinds that a topic carries."""

    def __init__(self, kinds: Any) -> None:
        self._adapter: TypeAdapter[T] = TypeAdapter(kinds)

    def __call__(self, data: bytes) -> T:
        """The message. MalformedMessage for another protocol version and for anything that is not a message."""
        try:
            fields = unpack_map(data, max_items=MAX_ITEMS)
            check_version(fields.pop("v", None))
            if type(fields.get("kind")) is not str:
                raise ValueError("kind: every message names its kind")
            return self._adapter.validate_python(fields)
        except ValidationError as error:
            raise MalformedMessage(reason(error)) from None
        except ValueError as error:
            raise MalformedMessage(str(error)) from None


decode_coordinator = Decoder[CoordinatorState](CoordinatorState)
decode_presence = Decoder[Presence](Presence)
decode_vitals = Decoder[Vitals](Vitals)
decode_sealed = Decoder[Sealed](Sealed)
decode_task = Decoder[Task](Task)
decode_uplink = Decoder[Uplink](Uplink)
decode_downlink = Decoder[Downlink](Downlink)
decode_infer_request = Decoder[InferRequest](InferRequest)
decode_infer_reply = Decoder[InferReply](InferReply)
decode_any = Decoder[AnyMessage](AnyMessage)


def unsealed(data: bytes) -> bytes:
    """The body of a sealed message, its signature not looked at, for those who hold no key; any other message itself.
    MalformedMessage for what is none."""
    message = decode_any(data)
    return message.body if isinstance(message, Sealed) else data


# --- payloads -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Payload:
    """A payload that was read; its arrays are read-only. Of FLOAT32 they are views of the buffer, which they keep
    alive."""

    header: PayloadHeader
    subnet: Subnet


class PayloadFields(TypedDict, total=False):
    """What a payload's header says beside its tensors; see PayloadHeader."""

    run: Required[str]
    round: Required[int]
    examples: int
    weight: float
    metrics: dict[str, float]


def write_payload(
    file: BinaryIO,
    subnet: Subnet,
    *,
    encoding: Encoding = Encoding.FLOAT32,
    delta: bool = False,
    **fields: Unpack[PayloadFields],
) -> None:
    """Write a payload at the file's position. Syncs nothing. ValueError if encoding and `delta` do not go together
    (shared.encoding.check_header). FLOAT32 is written tensor by tensor: no copy of the whole is made; of a lossy
    encoding the coded bytes are in memory at once."""
    tensors, blocks, compressed = encode_tensors(subnet.tensors, encoding)
    header = PayloadHeader(
        **fields,
        encoding=encoding.value,
        delta=delta,
        compressed=compressed,
        masks=None
        if subnet.held is None
        else {name: np.packbits(mask).tobytes() for name, mask in subnet.held.items()},
        units=None if subnet.held is None else {name: mask.size for name, mask in subnet.held.items()},
        tensors=tensors,
    )
    check_header(header)
    packed = msgpack.packb({"protocol": PROTOCOL, **header.model_dump(exclude_defaults=True)})
    if len(packed) > MAX_HEADER:
        raise ValueError(f"the header of {len(header.tensors)} tensors takes {len(packed)} bytes; {MAX_HEADER} may be")
    position = file.write(MAGIC + len(packed).to_bytes(4, "little") + packed)
    for block in blocks:
        position += file.write(bytes(-position % alignment(header)))
        position += file.write(block)


def encode_payload(
    subnet: Subnet,
    *,
    encoding: Encoding = Encoding.FLOAT32,
    delta: bool = False,
    **fields: Unpack[PayloadFields],
) -> bytes:
    """A payload in memory: `write_payload` where a file would be too much."""
    file = io.BytesIO()
    write_payload(file, subnet, encoding=encoding, delta=delta, **fields)
    return file.getvalue()


def decode_payload(buffer: bytes | memoryview | mmap.mmap, *, limit: int) -> Payload:
    """The payload that `buffer` is. Of FLOAT32 no tensor is copied; any other encoding is decoded into new arrays.

    MalformedPayload if it, or what it decodes to, is longer than `limit` bytes, or anything in it is wrong: lengths,
    dtypes, shapes, names that come twice, masks, padding, values that are not finite. What of it fits the model, the
    caller must check.
    """
    view = memoryview(buffer)
    if len(view) > limit:
        raise MalformedPayload(f"{len(view)} bytes, where at most {limit} are taken")
    header, position = _read_header(view)
    held = _read_masks(header)
    tensors = decode_tensors(header, view, position, limit=limit)
    return Payload(header, Subnet(tensors, held))


@contextmanager
def open_payload(path: Path, *, limit: int) -> Iterator[Payload]:
    """The payload in this file, mapped into memory rather than read; OSError, or as `decode_payload`.

    The file must not be cut while it is mapped: until the end of the block, or of the last array of it that is kept.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= limit:
            raise MalformedPayload(f"{path.name} has {size} bytes, where 1 to {limit} are taken")
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        yield decode_payload(mapping, limit=limit)
    finally:
        with suppress(BufferError):  # somebody keeps an array: unmapped with the last one
            mapping.close()


def _read_header(view: memoryview) -> tuple[PayloadHeader, int]:
    """The header, and where it ends."""
    if len(view) < 8 or view[:4] != MAGIC:
        raise MalformedPayload(f"does not begin with {MAGIC.decode()} and a header length")
    end = 8 + int.from_bytes(view[4:8], "little")
    if end > min(len(view), 8 + MAX_HEADER):
        raise MalformedPayload(f"a header of {end - 8} bytes, where {min(len(view) - 8, MAX_HEADER)} may be")
    try:
        fields = unpack_map(view[8:end], max_items=MAX_TENSORS)
        check_version(fields.get("protocol"))
        header = PayloadHeader.model_validate(fields)
        check_header(header)
    except ValidationError as error:
        raise MalformedPayload(f"header: {reason(error)}") from None
    except ValueError as error:
        raise MalformedPayload(f"header: {error}") from None
    return header, end


def _read_masks(header: PayloadHeader) -> Masks | None:
    masks, units = header.masks, header.units
    if masks is None and units is None:
        return None
    if masks is None or units is None or masks.keys() != units.keys():
        raise MalformedPayload("masks and units do not name the same groups")
    held = {}
    for group, packed in masks.items():
        count = units[group]
        if len(packed) != -(-count // 8):
            raise MalformedPayload(f"mask of {group!r} has {len(packed)} bytes for {count} units")
        bits = np.unpackbits(np.frombuffer(packed, np.uint8)).view(np.bool_)
        if bits[count:].any():
            raise MalformedPayload(f"mask of {group!r} holds units beyond its {count}")
        if not bits[:count].any():
            raise MalformedPayload(f"mask of {group!r} holds no unit")
        held[group] = bits[:count]
    return held
