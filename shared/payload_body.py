"""The tensors of a payload as bytes, and back: all that follows its header. docs/protocol.md has the layout."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import zstandard

from shared.encoding import Encoding, decode, encode, stored
from shared.errors import MalformedPayload
from shared.payload_header import PayloadHeader, TensorSpec
from shared.tensors import Array, Tensors

ALIGNMENT = 64
"""Of tensors that are used where they are: those of FLOAT32. Others are decoded, and follow each other at once."""
BLOCK = 1 << 18
"""Elements that are checked at once."""
TENSOR_ENCODINGS: Mapping[Encoding, frozenset[Encoding]] = {
    Encoding.FLOAT32: frozenset(),
    Encoding.FLOAT16: frozenset({Encoding.FLOAT16}),
    Encoding.INT8: frozenset({Encoding.INT8, Encoding.FLOAT16}),
    Encoding.TOPK: frozenset({Encoding.TOPK}),
}
"""Encoding of a payload -> how a tensor in it may be coded, where it is."""
PAYS = 0.95
"""Compressed is what then has less than this share of its bytes."""


def encode_tensors(tensors: Tensors, encoding: Encoding) -> tuple[tuple[TensorSpec, ...], Iterable[memoryview], bool]:
    """How the header describes the tensors, their bytes in blocks, and whether those are compressed.

    FLOAT32: a block is a tensor, and nothing is copied. Otherwise all coded bytes are in memory at once.
    """
    coded = {name: encode(array, encoding) for name, array in tensors.items()}
    specs = tuple(
        TensorSpec(
            name=name,
            dtype=tensors[name].dtype.name,  # type: ignore[arg-type]
            shape=tensors[name].shape,
            encoding=tensor.encoding and tensor.encoding.value,
            kept=tensor.kept,
        )
        for name, tensor in coded.items()
    )
    parts = [part for tensor in coded.values() for part in tensor.parts]
    frame = None if encoding is Encoding.FLOAT32 else compress(map(_bytes, parts), sum(part.nbytes for part in parts))
    return (specs, map(_bytes, parts), False) if frame is None else (specs, [memoryview(frame)], True)


def decode_tensors(header: PayloadHeader, view: memoryview, position: int, *, limit: int) -> Tensors:
    """The tensors that begin at `position` and end where `view` does; see `shared.codec.decode_payload`."""
    sizes = _sizes(header, limit)
    if header.compressed:
        view, position = memoryview(decompress(view[position:], sum(sizes))), 0
    places = []
    for size in sizes:
        start = _aligned(view, position, alignment(header))
        position = start + size
        places.append(start)
    if position != len(view):
        raise MalformedPayload(f"the header describes {position} bytes, the payload has {len(view)}")
    tensors = {
        spec.name: _read_tensor(spec, view[start : start + size], copy=header.encoding != Encoding.FLOAT32)
        for spec, start, size in zip(header.tensors, places, sizes, strict=True)
    }
    if len(tensors) != len(header.tensors):
        raise MalformedPayload("a tensor comes twice")
    return tensors


def alignment(header: PayloadHeader) -> int:
    """Every tensor begins at a multiple of this."""
    return ALIGNMENT if header.encoding == Encoding.FLOAT32 else 1


def check_header(header: PayloadHeader) -> None:
    """ValueError where what the header says of encodings does not go together."""
    if header.encoding not in list(Encoding):
        raise ValueError(f"encoding {header.encoding!r} is none of {', '.join(Encoding)}")
    encoding = Encoding(header.encoding)
    if header.delta and encoding is Encoding.FLOAT32:
        raise ValueError("float32 carries values, not differences")
    if encoding is Encoding.TOPK and not header.delta:
        raise ValueError("topk carries differences, not values: what it leaves out would be 0")
    if header.compressed and encoding is Encoding.FLOAT32:
        raise ValueError("float32 is not compressed")
    for spec in header.tensors:
        _check_spec(spec, encoding)


def _check_spec(spec: TensorSpec, encoding: Encoding) -> None:
    if spec.encoding is not None:
        if spec.encoding not in TENSOR_ENCODINGS[encoding]:
            raise ValueError(f"tensor {spec.name!r} in {spec.encoding!r}, which a payload in {encoding} does not have")
        if spec.dtype != "float32" or len(spec.shape) < 2 or not all(spec.shape):
            raise ValueError(f"tensor {spec.name!r} of {spec.dtype} {spec.shape} in {spec.encoding}")
    if spec.kept > (math.prod(spec.shape) if spec.encoding == Encoding.TOPK else 0):
        raise ValueError(f"tensor {spec.name!r} of shape {spec.shape} keeps {spec.kept} values")


def compress(parts: Iterable[memoryview], size: int) -> bytes | None:
    """The parts, `size` bytes together, as one zstd frame that says its size; None where that does not pay."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=size)
    blocks = [compressor.compress(part) for part in parts]
    blocks.append(compressor.flush())
    return b"".join(blocks) if sum(map(len, blocks)) < PAYS * size else None


def decompress(data: memoryview, size: int) -> bytes:
    """The `size` bytes that one zstd frame holds; MalformedPayload for any other size, and for what is no frame.

    Nothing is decompressed, nor memory taken, before the frame itself has promised that size; and no more than that is
    taken, whatever window the frame asks for, as all of it is decompressed at once.
    """
    try:
        promised = zstandard.frame_content_size(data)
        if promised != size:
            raise MalformedPayload(f"the header describes {size} bytes, the zstd frame holds {promised}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise MalformedPayload(f"not a zstd frame of {size} bytes: {str(error)[:100]}") from None


def _sizes(header: PayloadHeader, limit: int) -> list[int]:
    """Bytes of each tensor as it is stored. Neither these together nor the decoded ones may exceed the limit."""
    sizes, total = [], 0
    for spec in header.tensors:
        itemsize = np.dtype(spec.dtype).itemsize
        size = stored(_coding(spec), spec.shape, spec.kept, itemsize)
        total += max(size, math.prod(max(axis, 1) for axis in spec.shape) * itemsize)  # an axis of 0 hides no others
        if total > limit:
            raise MalformedPayload(
                f"up to tensor {spec.name!r} of shape {spec.shape} exceeds the limit of {limit} bytes"
            )
        sizes.append(size)
    return sizes


def _read_tensor(spec: TensorSpec, data: memoryview, *, copy: bool) -> Array:
    encoding = _coding(spec)
    try:
        if encoding is None:
            array: Array = np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)
            _check_values(array)
            array = array.copy() if copy else array
        else:
            array = decode(encoding, spec.shape, spec.kept, data)
    except MalformedPayload as error:
        raise MalformedPayload(f"tensor {spec.name!r} has {error}") from None
    array.flags.writeable = False
    return array


def _coding(spec: TensorSpec) -> Encoding | None:
    return None if spec.encoding is None else Encoding(spec.encoding)


def _bytes(array: Array) -> memoryview:
    """The array's values, little-endian, in C order."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data


def _aligned(view: memoryview, position: int, alignment: int) -> int:
    """The next place where a tensor may start; what is skipped must be zeros."""
    start = position + -position % alignment
    if any(view[position:start]):
        raise MalformedPayload("padding that is not zero")
    return start


def _check_values(array: Array) -> None:
    if array.dtype.kind == "f" and not _finite(array.reshape(-1)):
        raise MalformedPayload("values that are not finite")
    if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise MalformedPayload("truth values other than 0 and 1")


def _finite(flat: Array) -> bool:
    """Whether all values are finite, at the speed of memory.

    A sum of products is finite only if every factor is: one dot product of the two halves nearly always proves it,
    without temporaries. Where it overflows, look at the values themselves.
    """
    half = len(flat) // 2
    if flat.dtype.itemsize >= 4 and half:
        with np.errstate(all="ignore"):
            if math.isfinite(np.dot(flat[:half], flat[half : 2 * half])) and np.isfinite(flat[-1]):
                return True
    return all(np.isfinite(flat[start : start + BLOCK]).all() for start in range(0, len(flat), BLOCK))
