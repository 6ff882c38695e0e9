"""How the float tensors of a payload are coded, and who likes it how. docs/protocol.md has the bytes.

Coded are float32 tensors with at least two axes, where the bytes are. Biases, normalization, integers and other dtypes
travel as they are, and so does a tensor with a value that its code has no number for (too large, or not finite).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from shared.errors import MalformedPayload
from shared.tensors import Array, Subnet


class Encoding(StrEnum):
    """Of a payload, and of one tensor in it. All but FLOAT32 are lossy."""

    FLOAT32 = "float32"
    """Every tensor as it is."""
    FLOAT16 = "float16"
    """IEEE half precision."""
    INT8 = "int8"
    """Symmetric, with one scale per row (channel) of axis 0; float16 where rows are too short for a scale."""
    TOPK = "topk"
    """The largest values of each tensor as int8, the others are 0: only for differences, never for values."""


LIKED: Mapping[str, tuple[Encoding, ...]] = {
    "loopback": (Encoding.FLOAT32, Encoding.FLOAT16, Encoding.INT8, Encoding.TOPK),
    "ethernet": (Encoding.FLOAT32, Encoding.FLOAT16, Encoding.INT8, Encoding.TOPK),
    "wifi": (Encoding.FLOAT16, Encoding.INT8, Encoding.FLOAT32, Encoding.TOPK),
    "lte": (Encoding.INT8, Encoding.FLOAT16, Encoding.TOPK, Encoding.FLOAT32),
    "lte-m": (Encoding.TOPK, Encoding.INT8, Encoding.FLOAT16, Encoding.FLOAT32),
    "nb-iot": (Encoding.TOPK, Encoding.INT8, Encoding.FLOAT16, Encoding.FLOAT32),
}
"""Kind of link of a firmware profile -> every encoding, what that link likes best first."""

SHARE = 0.05
"""Of a tensor's values, how many TOPK sends. With error feedback each of them is due about once in 20 rounds."""
SHORTEST_ROW = 16
"""Values of a row that are worth a scale: 4 bytes for 16 saved."""
LARGEST = 127


def choose(wanted: Sequence[str], taken: Sequence[str]) -> Encoding:
    """The first of `wanted` that is also in `taken` and known here; without one FLOAT32, which everybody reads."""
    for name in wanted:
        if name in taken and name in list(Encoding):
            return Encoding(name)
    return Encoding.FLOAT32


def decoded(subnet: Subnet, encoding: Encoding) -> Subnet:
    """What the receiver of a payload in this encoding reads, bit for bit; FLOAT32 changes nothing. What it costs:
    one tensor more than the result. What was lost is `subnet - decoded`, the sender's error feedback."""
    tensors = {}
    for name, array in subnet.tensors.items():
        coded = encode(array, encoding)
        if coded.encoding is not None:
            data = b"".join(part.tobytes() for part in coded.parts)
            array = decode(coded.encoding, array.shape, coded.kept, data)
        tensors[name] = array
    return replace(subnet, tensors=tensors)


# --- one tensor -----------------------------------------------------------------------------------------------------


class Coded(NamedTuple):
    """One tensor as it is written: as it is (`encoding` None), or coded."""

    encoding: Encoding | None
    kept: int
    """Values that TOPK keeps."""
    parts: tuple[Array, ...]
    """Arrays whose bytes, one after the other, are the tensor's."""


def encode(array: Array, encoding: Encoding) -> Coded:
    """The tensor as a payload in this encoding has it. The same values give the same bytes."""
    as_it_is = Coded(None, 0, (array,))
    if encoding is Encoding.FLOAT32 or array.dtype.type is not np.float32 or array.ndim < 2 or not array.size:
        return as_it_is
    if encoding is Encoding.TOPK:
        return _topk(array) or as_it_is
    if encoding is Encoding.INT8 and array.size // len(array) >= SHORTEST_ROW:
        return _int8(array) or as_it_is
    return _float16(array) or as_it_is


def stored(encoding: Encoding | None, shape: Sequence[int], kept: int, itemsize: int) -> int:
    """Bytes of a tensor in a payload, before compression."""
    elements = math.prod(shape)
    match encoding:
        case Encoding.FLOAT16:
            return 2 * elements
        case Encoding.INT8:
            return 4 * shape[0] + elements
        case Encoding.TOPK:
            return 4 + 5 * kept
    return itemsize * elements


def decode(encoding: Encoding, shape: Sequence[int], kept: int, data: bytes | memoryview) -> Array:
    """A new float32 array from the bytes of a coded tensor, as many as `stored` says. It has at least two axes and one
    element. MalformedPayload for a value that is not finite, a scale that is none, a position outside.
    """
    match encoding:
        case Encoding.FLOAT16:
            half = _interleaved(data, math.prod(shape), np.dtype("<f2"))
            array = half.astype(np.float32)
            if not np.isfinite(array).all():
                raise MalformedPayload("float16 values that are not finite")
        case Encoding.INT8:
            scales = _read_scales(data, shape[0])
            array = _read_int8(data, 4 * shape[0], math.prod(shape)).astype(np.float32)
            array = array.reshape(shape[0], -1)
            array *= scales[:, None]
        case _:
            scale = _read_scales(data, 1)
            gaps = _interleaved(data[4:], kept, np.dtype("<u4"))
            positions = np.cumsum(gaps, dtype=np.int64)
            positions += np.arange(kept)
            if kept and positions[-1] >= math.prod(shape):
                raise MalformedPayload(f"position {positions[-1]} in a tensor of {math.prod(shape)} values")
            array = np.zeros(math.prod(shape), np.float32)
            array[positions] = _read_int8(data, 4 + 4 * kept, kept) * scale
    return array.reshape(shape)


def _float16(array: Array) -> Coded | None:
    if not _peak(array.reshape(1, -1))[0] < 65520:  # what is rounded to the largest number, 65504
        return None
    return Coded(Encoding.FLOAT16, 0, (_planes(array.astype("<f2")),))


def _int8(array: Array) -> Coded | None:
    rows = array.reshape(len(array), -1)
    scales = _scales(_peak(rows))
    if scales is None:
        return None
    return Coded(Encoding.INT8, 0, (scales.astype("<f4"), _quantized(rows, scales[:, None])))


def _topk(array: Array) -> Coded | None:
    flat = array.reshape(-1)
    scale = _scales(_peak(flat[None]))
    if scale is None:
        return None
    count = math.ceil(SHARE * flat.size)
    size = np.abs(flat)
    size.partition(flat.size - count)
    least = size[flat.size - count]
    np.abs(flat, out=size)
    keep = size > least
    if least > 0:  # zeros are not worth their positions
        keep[np.flatnonzero(size == least)[: count - np.count_nonzero(keep)]] = True
    positions = np.flatnonzero(keep)
    gaps = np.diff(positions, prepend=-1) - 1
    parts = (scale.astype("<f4"), _planes(gaps.astype("<u4")), _quantized(flat[positions], scale))
    return Coded(Encoding.TOPK, len(positions), parts)


def _peak(rows: Array) -> Array:
    """The largest absolute value of each row; NaN where there is one."""
    peaks: Array = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    return peaks


def _scales(peaks: Array) -> Array | None:
    """peak / 127 for each peak, rounded up to 16 significant bits: then every multiple up to the 127th is exact, so
    that decoding is the same everywhere and what was decoded is encoded without loss. 0 for a peak below 2^-119, whose
    scale would be subnormal. None if a peak is not finite, or too near the end of float32 for that."""
    scales = peaks / np.float32(LARGEST)
    up = ((scales.view(np.uint32) + np.uint32(0xFF)) & np.uint32(0xFFFFFF00)).view(np.float32)
    up[scales < np.finfo(np.float32).smallest_normal] = 0
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(up * np.float32(LARGEST)).all()
    return up if finite else None


def _quantized(values: Array, scales: Array) -> Array:
    quotients = values / np.where(scales > 0, scales, np.float32(1))
    np.rint(quotients, out=quotients)
    return quotients.astype(np.int8)


def _planes(array: Array) -> Array:
    """The first byte of every number, then every second one, ...: alike next to alike, which compresses better."""
    return np.ascontiguousarray(array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T)


def _interleaved(data: bytes | memoryview, count: int, dtype: np.dtype[np.generic]) -> Array:
    """The numbers whose planes these are."""
    numbers = np.empty((count, dtype.itemsize), np.uint8)
    for index, plane in enumerate(np.frombuffer(data, np.uint8, numbers.size).reshape(dtype.itemsize, count)):
        numbers[:, index] = plane  # several times as fast as one assignment of all, transposed
    return numbers.reshape(-1).view(dtype)


def _read_scales(data: bytes | memoryview, count: int) -> Array:
    scales = np.frombuffer(data, "<f4", count).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if not (np.isfinite(scales * np.float32(LARGEST)) & ~np.signbit(scales)).all():
            raise MalformedPayload("a scale that is negative or not finite, or whose multiples are not")
    return scales


def _read_int8(data: bytes | memoryview, offset: int, count: int) -> Array:
    values: Array = np.frombuffer(data, np.int8, count, offset)
    if count and values.min() < -LARGEST:
        raise MalformedPayload(f"an int8 value of {values.min()}, where -{LARGEST} to {LARGEST} may be")
    return values
