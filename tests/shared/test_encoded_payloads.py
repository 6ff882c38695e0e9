"""Payloads in lossy encodings as bytes: golden ones, and those of a hostile sender, which must only ever be refused."""

import importlib.util
import math
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.codec import decode_payload, encode_payload, open_payload
from shared.encoding import Encoding, decoded
from shared.errors import MalformedPayload
from shared.tensors import Array, Subnet

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("wire_samples", GOLDEN / "wire_samples.py")
assert _spec is not None
assert _spec.loader is not None
samples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(samples)

LIMIT = 1 << 20
LOSSY = [Encoding.FLOAT16, Encoding.INT8, Encoding.TOPK]


def payload(subnet: Subnet, encoding: Encoding) -> bytes:
    return encode_payload(subnet, encoding=encoding, delta=True, run="demo-1", round=4, weight=120.0)


def subnet(seed: int = 0, channels: int = 24) -> Subnet:
    """Large enough for compression to pay in every encoding."""
    rng = np.random.default_rng(seed)
    held = {"conv": np.arange(channels) % 3 > 0, "other": np.ones(5, bool)}
    return Subnet(
        {
            "conv.weight": rng.normal(size=(16, 40, 3, 3)).astype(np.float32),
            "depthwise.weight": rng.normal(size=(16, 1, 3, 3)).astype(np.float32),
            "bn.weight": rng.normal(size=16).astype(np.float32),
            "bn.steps": np.array(7, np.int64),
            "fc.weight": rng.normal(size=(10, 640)).astype(np.float32),
        },
        held,
    )


def parsed(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and decompressed body."""
    end = 8 + int.from_bytes(data[4:8], "little")
    header = msgpack.unpackb(data[8:end])
    body = data[end:]
    return header, zstandard.ZstdDecompressor().decompress(body) if header.get("compressed") else body


def built(header: dict[str, Any], body: bytes) -> bytes:
    packed = msgpack.packb(header)
    body = zstandard.ZstdCompressor().compress(body) if header.get("compressed") else body
    return b"TLR1" + len(packed).to_bytes(4, "little") + packed + body


def one(body: bytes, *, shape: tuple[int, ...] = (2, 16), encoding: str = "int8", **more: Any) -> bytes:
    """A payload of one coded tensor; any field of it in `more`."""
    spec = {"name": "a", "dtype": "float32", "shape": shape, "encoding": encoding}
    spec |= {key: more.pop(key) for key in ("dtype", "kept") if key in more}
    return built(
        {"protocol": 1, "run": "r", "round": 1, "encoding": encoding, "delta": True, "tensors": (spec,), **more}, body
    )


def plane(*numbers: int) -> bytes:
    """Gaps as they are written: first bytes first."""
    return np.array(numbers, "<u4").view(np.uint8).reshape(-1, 4).T.tobytes()


# --- the bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", LOSSY)
def test_the_bytes_of_every_encoding_are_what_they_always_were(encoding: Encoding) -> None:
    golden = bytes.fromhex((GOLDEN / f"payload_{encoding}.hex").read_text())
    assert payload(samples.DELTA, encoding).hex() == golden.hex()
    read = decode_payload(golden, limit=LIMIT)
    assert not read.header.compressed
    same_arrays(read.subnet, decoded(samples.DELTA, encoding))


def test_int8_as_it_is_documented() -> None:
    """Another implementation, from the documentation alone."""
    header, body = parsed(payload(samples.DELTA, Encoding.INT8))
    assert [spec.get("encoding") for spec in header["tensors"]] == ["int8", "float16", None, None, None]
    scales = struct.unpack_from("<2f", body)
    values = struct.unpack_from("<32b", body, 8)
    assert scales[0] == pytest.approx(1 / 127, rel=2**-15)
    assert scales[1] == pytest.approx(3 / 127, rel=2**-15)
    assert values[:9] == (127, -63, 32, -16, 8, -4, 2, -1, 0)  # 63.5 is less by a scale that is rounded up
    assert values[31] == 127
    low, high = body[40:46], body[46:52]
    halves = [struct.unpack("<e", bytes(pair))[0] for pair in zip(low, high, strict=True)]
    assert halves == [1.0, 0.5, 0.25, -1.0, 65504.0, 0.0]
    assert struct.unpack_from("<4f", body, 52) == (1.0, 2.0**127, np.float32(0.1), np.float32(-0.2))
    assert body[68:] == struct.pack("<q", 12)


def test_topk_as_it_is_documented() -> None:
    header, body = parsed(payload(samples.DELTA, Encoding.TOPK))
    assert [spec.get("kept") for spec in header["tensors"]] == [2, 1, 1, None, None]
    (scale,) = struct.unpack_from("<f", body)
    gaps = [int.from_bytes(body[4 + i : 12 : 2], "little") for i in range(2)]
    assert gaps == [0, 30]  # the first value, and the last of 32
    assert struct.unpack_from("<2b", body, 12) == (round(1 / scale), 127) == (42, 127)


@pytest.mark.parametrize("encoding", LOSSY)
def test_what_is_read_is_what_decoded_says_bit_for_bit(encoding: Encoding, tmp_path: Path) -> None:
    data = payload(subnet(), encoding)
    assert payload(subnet(), encoding) == data
    read = decode_payload(data, limit=LIMIT)
    assert (read.header.encoding, read.header.delta, read.header.compressed) == (encoding, True, True)
    same_arrays(read.subnet, decoded(subnet(), encoding))
    for array in read.subnet.tensors.values():
        assert not array.flags.writeable
        assert array.flags.aligned
    assert read.subnet.held is not None
    np.testing.assert_array_equal(read.subnet.held["conv"], np.arange(24) % 3 > 0)
    path = tmp_path / "update"
    path.write_bytes(data)
    with open_payload(path, limit=LIMIT) as mapped:
        same_arrays(mapped.subnet, read.subnet)


def test_sizes_are_what_was_promised() -> None:
    rng = np.random.default_rng(1)
    large = Subnet({"a": rng.normal(size=(256, 1024)).astype(np.float32)})
    sizes = {encoding: len(payload(large, encoding)) / 2**20 for encoding in LOSSY}
    assert sizes[Encoding.FLOAT16] < 0.44
    assert sizes[Encoding.INT8] < 0.24
    assert sizes[Encoding.TOPK] < 0.022


def test_bytes_without_pattern_are_not_compressed() -> None:
    noise = np.random.default_rng(0).integers(-127, 128, (64, 512)).astype(np.float32)
    read = decode_payload(payload(Subnet({"a": noise}), Encoding.INT8), limit=LIMIT)
    assert not read.header.compressed
    assert decode_payload(payload(Subnet({}), Encoding.INT8), limit=LIMIT).subnet.tensors == {}


@pytest.mark.parametrize(("encoding", "delta"), [(Encoding.FLOAT32, True), (Encoding.TOPK, False)])
def test_only_what_has_a_meaning_is_written(encoding: Encoding, delta: bool) -> None:
    with pytest.raises(ValueError, match="differences"):
        encode_payload(subnet(), encoding=encoding, delta=delta, run="r", round=1)


def test_of_float32_nothing_is_said_that_was_not_before() -> None:
    header, _ = parsed(encode_payload(Subnet({"a": np.ones((2, 40), np.float32)}), run="r", round=1))
    assert header.keys() == {"protocol", "run", "round", "tensors"}
    assert header["tensors"] == [{"name": "a", "dtype": "float32", "shape": [2, 40]}]


# --- what a hostile sender makes of it ------------------------------------------------------------------------------

INT8 = struct.pack("<2f", 1.0, 1.0) + bytes(32)
SCALE = struct.pack("<f", 1.0)
BOMB = zstandard.ZstdCompressor().compress(bytes(1 << 26))


def scales(first: float) -> bytes:
    return struct.pack("<2f", first, 1.0) + bytes(32)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (one(INT8, encoding="zip"), "'zip'"),
        (one(INT8, delta=False, encoding="topk"), "differences"),
        (one(b"", encoding="float32"), "differences"),
        (one(b"", encoding="float32", delta=False, compressed=True), "compressed"),
        (one(bytes(128), encoding="float32", delta=False), "does not have"),
        (one(INT8, encoding="int8") + b"\0", "the payload has"),
        (one(INT8[:-1]), "the payload has"),
        (one(b""), "the payload has"),
        (one(scales(math.nan)), "scale"),
        (one(scales(math.inf)), "scale"),
        (one(scales(-1.0)), "scale"),
        (one(scales(-0.0)), "scale"),
        (one(scales(2.0**126)), "scale"),
        (one(INT8[:-1] + b"\x80"), "-128"),
        (one(INT8, shape=(40,)), r"\(40,\) in"),
        (one(b"", shape=(0, 16)), r"\(0, 16\) in"),
        (one(INT8, dtype="int64"), "int64"),
        (one(INT8, kept=1), "keeps 1"),
        (one(bytes(32) + b"\x00" * 31 + b"\x7c", encoding="float16"), "finite"),
        (one(bytes(32) + b"\x00" * 31 + b"\xff", encoding="float16"), "finite"),
        (one(bytes(60), encoding="float16"), "the payload has"),
        (one(SCALE + plane(32) + b"\1", encoding="topk", kept=1), "position 32 in a tensor of 32"),
        (one(SCALE + plane(30, 1) + b"\1\1", encoding="topk", kept=2), "position 32"),
        (one(SCALE + plane(2**32 - 1, 2**32 - 1) + b"\1\1", encoding="topk", kept=2), "position 8589934591"),
        (one(SCALE + plane(1) + b"\x80", encoding="topk", kept=1), "-128"),
        (one(struct.pack("<f", math.nan) + plane(1) + b"\1", encoding="topk", kept=1), "scale"),
        (one(SCALE + plane(1) + b"\1", encoding="topk", kept=2), "the payload has"),
        (one(SCALE + plane(*[0] * 33) + bytes(33), encoding="topk", kept=33), "keeps 33"),
        (one(SCALE, encoding="topk", kept=-1), "kept"),
        (one(SCALE, encoding="topk", kept=0, shape=(2**20, 2**20)), "exceeds the limit"),
        (one(SCALE, encoding="topk", kept=0, shape=(512, 513)), "exceeds the limit"),
        (one(SCALE + bytes(5 * 220_000), encoding="topk", kept=220_000, shape=(1, 250_000)), "at most 1048576"),
        (one(INT8[:-1], compressed=True), "describes 40 bytes, the zstd frame holds 39"),
        (one(INT8 + b"\0", compressed=True), "describes 40 bytes, the zstd frame holds 41"),
        (one(INT8, compressed=True) + b"\0", "zstd"),
        (one(INT8, compressed=True)[:-1], "zstd"),
    ],
)
def test_what_is_wrong_is_refused_with_the_reason(data: bytes, said: str) -> None:
    tracemalloc.start()
    with pytest.raises(MalformedPayload, match=said):
        decode_payload(data, limit=LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_what_these_are_made_from_is_valid() -> None:
    assert decode_payload(one(INT8), limit=LIMIT).subnet.tensors["a"].shape == (2, 16)
    assert decode_payload(one(INT8, compressed=True), limit=LIMIT).subnet.tensors["a"].shape == (2, 16)
    kept = decode_payload(one(SCALE + plane(30, 0) + b"\1\2", encoding="topk", kept=2), limit=LIMIT)
    assert kept.subnet.tensors["a"].reshape(-1)[29:].tolist() == [0.0, 1.0, 2.0]


def frame(body: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(body)


def header_only(**more: Any) -> bytes:
    return one(b"", **more)[: -len(frame(b""))]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(INT8, id="not compressed at all"),
        pytest.param(frame(INT8)[:5], id="half a frame"),
        pytest.param(frame(INT8, write_content_size=False), id="a frame without its size"),
        pytest.param(frame(INT8) + frame(b""), id="two frames"),
        pytest.param(frame(INT8[:20]) + frame(INT8[20:]), id="the content in two frames"),
        pytest.param(b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + frame(INT8), id="a skippable frame"),
        pytest.param(BOMB, id="64 MiB of zeros, as they say"),
        pytest.param(b"\x28\xb5\x2f\xfd\x60\x28\xff" + BOMB[9:], id="64 MiB of zeros that claim to be fewer"),
        pytest.param(b"\x28\xb5\x2f\xfd\x20\x28" + BOMB[9:], id="64 MiB of zeros that claim to be 40"),
    ],
)
def test_a_frame_that_is_not_what_the_header_says_costs_nothing(body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(MalformedPayload, match="zstd"):
        decode_payload(header_only(compressed=True) + body, limit=LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_crowd_of_tensors_is_measured_together() -> None:
    """Each within the limit, and five bytes of payload: what they decode to is what counts."""
    spec = {"dtype": "float32", "shape": (100, 1000), "encoding": "topk"}
    header = {"protocol": 1, "run": "r", "round": 1, "encoding": "topk", "delta": True}
    for count, fits in ((2, True), (3, False)):
        tensors = tuple({"name": f"t{i}", **spec} for i in range(count))
        data = built({**header, "tensors": tensors}, bytes(4 * count))
        if fits:
            assert not any(array.any() for array in decode_payload(data, limit=LIMIT).subnet.tensors.values())
        else:
            with pytest.raises(MalformedPayload, match=r"'t2'.*exceeds"):
                decode_payload(data, limit=LIMIT)


def test_the_memory_of_decoding_is_bounded_by_the_limit() -> None:
    large = Subnet({f"t{i}": np.random.default_rng(i).normal(size=(100, 500)).astype(np.float32) for i in range(20)})
    limit = 20 * 100 * 500 * 4
    for encoding in LOSSY:
        data = payload(large, encoding)
        decode_payload(data, limit=limit)
        tracemalloc.start()
        kept = decode_payload(data, limit=limit)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(kept.subnet.tensors) == 20
        assert peak < 1.6 * limit
        with pytest.raises(MalformedPayload, match="exceeds"):
            decode_payload(data, limit=limit - 1)


# --- damage ---------------------------------------------------------------------------------------------------------

PAYLOADS = {
    (encoding, compressed): data
    for encoding in LOSSY
    for compressed, data in ((False, payload(samples.DELTA, encoding)), (True, payload(subnet(), encoding)))
}


def damaged(original: bytes, data: st.DataObject) -> bytes:
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        if not changed:
            break
        at = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(["flip", "replace", "cut"])):
            case "flip":
                changed[at] ^= 1 << data.draw(st.integers(0, 7))
            case "replace":
                changed[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=5))
            case _:
                del changed[at:]
    return bytes(changed)


@settings(max_examples=400)
@given(st.sampled_from(sorted(PAYLOADS)), st.data())
def test_a_payload_with_bytes_changed_is_valid_or_refused(which: tuple[Encoding, bool], data: st.DataObject) -> None:
    with suppress(MalformedPayload):
        sane(decode_payload(damaged(PAYLOADS[which], data), limit=LIMIT).subnet)


@settings(max_examples=300)
@given(st.sampled_from(LOSSY), st.data())
def test_a_body_with_bytes_changed_before_compression_is_valid_or_refused(
    encoding: Encoding, data: st.DataObject
) -> None:
    header, body = parsed(PAYLOADS[encoding, True])
    with suppress(MalformedPayload):
        sane(decode_payload(built(header, damaged(body, data)), limit=LIMIT).subnet)


@settings(max_examples=300)
@given(st.sampled_from(sorted(PAYLOADS)), st.data())
def test_a_header_with_a_tensor_described_anew_is_valid_or_refused(
    which: tuple[Encoding, bool], data: st.DataObject
) -> None:
    header, body = parsed(PAYLOADS[which])
    spec = data.draw(st.sampled_from(header["tensors"]))
    spec |= data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "encoding": st.sampled_from([*Encoding, None, "zip"]),
                "kept": st.integers(-1, 2**40) | st.integers(0, 40),
                "shape": st.lists(st.integers(0, 2**40) | st.integers(0, 20), max_size=5),
                "dtype": st.sampled_from(["float32", "float16", "int64", "bool", "object"]),
            },
        )
    )
    header |= data.draw(
        st.fixed_dictionaries(
            {}, optional={"delta": st.booleans(), "compressed": st.booleans(), "encoding": st.sampled_from([*Encoding])}
        )
    )
    with suppress(MalformedPayload):
        sane(decode_payload(built(header, body), limit=LIMIT).subnet)


def sane(read: Subnet) -> None:
    assert sum(array.nbytes for array in read.tensors.values()) <= LIMIT
    assert all(np.isfinite(array).all() for array in read.tensors.values())


def same_arrays(left: Subnet, right: Subnet) -> None:
    assert list(left.tensors) == list(right.tensors)
    for name, array in left.tensors.items():
        other: Array = right.tensors[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        assert array.tobytes() == other.tobytes()
