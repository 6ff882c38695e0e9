"""The wire: golden bytes, round trips, and bytes from outside that must only ever be refused."""

import importlib.util
import io
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.codec import (
    Decoder,
    decode_coordinator,
    decode_downlink,
    decode_infer_reply,
    decode_infer_request,
    decode_payload,
    decode_presence,
    decode_sealed,
    decode_task,
    decode_uplink,
    decode_vitals,
    encode_message,
    encode_payload,
    open_payload,
    write_payload,
)
from shared.errors import MalformedMessage, MalformedPayload
from shared.messages import AnyMessage, Chunk, Message, Offer, Receipt
from shared.tensors import Subnet

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("wire_samples", GOLDEN / "wire_samples.py")
assert _spec is not None
assert _spec.loader is not None
samples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(samples)

DECODERS: dict[str, Any] = {
    "coordinator": decode_coordinator,
    "presence": decode_presence,
    "vitals": decode_vitals,
    "sealed": decode_sealed,
    "task": decode_task,
    "grant": decode_downlink,
    "receipt": decode_downlink,
    "infer": decode_infer_request,
    "inferred": decode_infer_reply,
}
LIMIT = 1 << 20
decode_any = Decoder[AnyMessage](AnyMessage)


def golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / f"{name}.hex").read_text())


def small_payload() -> bytes:
    return encode_payload(samples.SUBNET, run="demo-1", round=4, examples=120, weight=120.0, metrics={"loss": 0.25})


def payload_of(header: dict[str, Any], body: bytes = b"") -> bytes:
    """A payload with any header: what a hostile sender would make."""
    packed = msgpack.packb({"protocol": 1, "run": "r", "round": 1, "tensors": (), **header})
    start = b"TLR1" + struct.pack("<I", len(packed)) + packed
    return start + (bytes(-len(start) % 64) + body if header.get("tensors") else b"")


def tensor(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape}


# --- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", samples.MESSAGES)
def test_the_bytes_of_every_message_are_what_they_always_were(kind: str) -> None:
    message = samples.MESSAGES[kind]
    assert message.kind == kind
    assert encode_message(message).hex() == golden(kind).hex()
    assert DECODERS.get(kind, decode_uplink)(golden(kind)) == message


def test_there_is_a_golden_file_for_every_kind_of_message() -> None:
    kinds = {kind.model_fields["kind"].default for kind in Message.__subclasses__() if "kind" in kind.model_fields}
    assert kinds == set(samples.MESSAGES) == {path.stem for path in GOLDEN.glob("*.hex") if "payload" not in path.stem}


def test_a_chunk_that_fills_a_packet_keeps_its_bytes_and_adds_few() -> None:
    data = bytes(range(256)) * 478
    encoded = encode_message(Chunk(digest=samples.DIGEST, index=2**31 - 1, data=data))
    assert decode_uplink(encoded).data == decode_downlink(encoded).data == data  # type: ignore[union-attr]
    assert len(encoded) - len(data) < 128


def test_a_message_is_only_taken_where_its_kind_belongs() -> None:
    with pytest.raises(MalformedMessage, match="grant"):
        decode_uplink(golden("grant"))
    with pytest.raises(MalformedMessage, match="offer"):
        decode_downlink(golden("offer"))
    with pytest.raises(MalformedMessage, match="kind"):
        decode_task(golden("presence"))


@pytest.mark.parametrize("version", [0, 2, 2**63])
def test_another_protocol_version_is_refused_by_both_names(version: int) -> None:
    data = msgpack.packb({**msgpack.unpackb(golden("offer")), "v": version})
    with pytest.raises(MalformedMessage, match=rf"version {version} is not 1\b.*update"):
        decode_uplink(data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"v": None}, "version"),
        ({"v": True}, "version"),
        ({"v": "1"}, "version"),
        ({"extra": 1}, "extra"),
        ({"run": "../etc"}, "run"),
        ({"run": "r" * 65}, "run"),
        ({"run": b"demo"}, "run"),
        ({"round": -1}, "round"),
        ({"round": 1.0}, "round"),
        ({"round": "1"}, "round"),
        ({"round": True}, "round"),
        ({"round": 2**64 - 1}, "round"),
        ({"blob": {"digest": "G" * 64, "size": 1, "chunk": 512}}, "digest"),
        ({"blob": {"digest": "a" * 65, "size": 1, "chunk": 512}}, "digest"),
        ({"blob": {"digest": "a" * 64, "size": 0, "chunk": 512}}, "size"),
        ({"blob": {"digest": "a" * 64, "size": 1, "chunk": 0}}, "chunk"),
        ({"kind": {"a": 1}}, "kind"),
        ({"kind": "offer\n"}, "kind"),
    ],
)
def test_a_field_that_is_wrong_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(MalformedMessage, match=said):
        decode_uplink(msgpack.packb({**msgpack.unpackb(golden("offer")), **change}))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="never-used"),
        pytest.param(b"\x90", id="an array"),
        pytest.param(golden("offer") + b"\x00", id="a byte too many"),
        pytest.param(golden("offer")[:-1], id="a byte too few"),
        pytest.param(b"\x81\x01\x01", id="a number as key"),
        pytest.param(b"\x81\xc4\x01a\x01", id="bytes as key"),
        pytest.param(b"\x82\xa1v\x01\xa1v\x01", id="a key twice"),
        pytest.param(b"\x81\xa1v\xd4\x05\x00", id="an extension"),
        pytest.param(b"\x81\xa1v\xd6\xff\x00\x00\x00\x00", id="a timestamp"),
        pytest.param(b"\x81\xa1\xff\x01", id="no UTF-8"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode_uplink(data)
    assert 0 < len(str(caught.value)) < 400


@pytest.mark.parametrize("depth", [10, 500, 900, 1023, 1024, 5000, 100_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"])
def test_deep_nesting_is_refused(depth: int, opening: bytes) -> None:
    nested = opening * depth + b"\xc0"
    for data in (nested, b"\x82\xa1v\x01\xa4kind" + nested, b"\x81\xa1v" + nested):
        with pytest.raises(MalformedMessage):
            decode_uplink(data)
    task = msgpack.packb({**msgpack.unpackb(golden("task")), "plan": 0})
    with pytest.raises(MalformedMessage):
        decode_task(task[:-1].replace(b"\xa4plan\x00", b"\xa4plan" + nested) + task[-1:])


@pytest.mark.parametrize("header", [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"])
def test_a_length_of_four_gigabytes_costs_nothing(header: bytes) -> None:
    decode_uplink(golden("offer"))
    tracemalloc.start()
    with pytest.raises(MalformedMessage):
        decode_uplink(b"\x81\xa1v" + header + b"\xff\xff\xff\xff" + bytes(100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_more_entries_than_any_message_has_are_refused_by_their_header() -> None:
    with pytest.raises(MalformedMessage, match="max_array_len"):
        decode_uplink(msgpack.packb({"v": 1, "ranges": [0] * 5000}))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_any(data)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(samples.MESSAGES)), st.data())
def test_a_message_with_one_field_replaced_is_valid_or_refused(kind: str, data: st.DataObject) -> None:
    fields = msgpack.unpackb(golden(kind))
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(json_like)
    try:
        message = decode_any(msgpack.packb(fields))
    except MalformedMessage:
        return
    assert decode_any(encode_message(message)) == message


@settings(max_examples=500)
@given(st.sampled_from(sorted(samples.MESSAGES)), st.data())
def test_a_message_with_bytes_changed_is_valid_or_refused(kind: str, data: st.DataObject) -> None:
    try:
        message = decode_any(mutated(golden(kind), data))
    except MalformedMessage:
        return
    assert decode_any(encode_message(message)) == message


def mutated(original: bytes, data: st.DataObject) -> bytes:
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        cut = data.draw(st.integers(0, 4))
        changed[at : at + cut] = data.draw(st.binary(max_size=5))
        if not changed:
            break
    return bytes(changed)


@given(
    st.builds(
        Receipt, run=st.just("r"), round=st.integers(0, 10**6), accepted=st.booleans(), reason=st.text(max_size=500)
    )
)
def test_any_text_and_number_comes_back(receipt: Receipt) -> None:
    assert decode_downlink(encode_message(receipt)) == receipt


# --- payloads -------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_payload_are_what_they_always_were() -> None:
    assert small_payload().hex() == golden("payload").hex()
    payload = decode_payload(golden("payload"), limit=LIMIT)
    assert payload.header.run == "demo-1"
    assert payload.header.weight == payload.header.examples == 120
    np.testing.assert_array_equal(payload.subnet.tensors["conv.weight"], [[1.0, -2.0, 0.5]])
    assert payload.subnet.tensors["bn.num_batches_tracked"] == 12
    assert payload.subnet.held is not None
    assert payload.subnet.held["conv"].tolist() == [False, True] + [False] * 7
    assert golden("payload").endswith(struct.pack("<q", 12))  # nothing after the last tensor
    assert len(golden("payload")) % 64 == 8  # which starts at a multiple of 64


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
floats = hnp.from_dtype(np.dtype(np.float32), allow_nan=False, allow_infinity=False)
arrays = st.one_of(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, max_side=5), elements=floats),
    hnp.arrays(
        st.sampled_from([np.int64, np.int32, np.uint8, np.bool_]), hnp.array_shapes(min_dims=0, min_side=0, max_side=5)
    ),
    hnp.arrays(np.float64, hnp.array_shapes(max_side=5), elements=st.floats(allow_nan=False, allow_infinity=False)),
    hnp.arrays(np.float16, hnp.array_shapes(max_side=5), elements=st.floats(-60000, 60000, width=16)),
)
masks = hnp.arrays(np.bool_, st.integers(1, 40)).filter(lambda mask: bool(mask.any()))


@given(st.dictionaries(names, arrays, max_size=5), st.none() | st.dictionaries(names, masks, max_size=4))
def test_every_subnet_comes_back_as_it_was(tensors: dict[str, Any], held: dict[str, Any] | None) -> None:
    read = decode_payload(encode_payload(Subnet(tensors, held), run="r", round=1), limit=LIMIT).subnet
    assert list(read.tensors) == list(tensors)
    for name, array in tensors.items():
        assert read.tensors[name].dtype == array.dtype
        assert read.tensors[name].shape == array.shape
        assert read.tensors[name].tobytes() == array.tobytes()
    assert (read.held is None) == (held is None)
    for group, mask in (held or {}).items():
        assert read.held is not None
        np.testing.assert_array_equal(read.held[group], mask)


def test_arrays_are_read_only_views_of_the_buffer_at_aligned_offsets() -> None:
    data = bytearray(small_payload())
    array = decode_payload(memoryview(data), limit=LIMIT).subnet.tensors["conv.weight"]
    assert not array.flags.writeable
    assert not array.flags.owndata
    offset = array.__array_interface__["data"][0] - np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    assert offset % 64 == 0
    data[offset : offset + 4] = struct.pack("<f", 9.0)
    assert array[0, 0] == 9.0


def test_any_layout_and_byte_order_in_memory_is_written_in_c_order_little_endian() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    for variant in (array, np.asfortranarray(array), np.arange(12, dtype=np.float32)[::2].reshape(2, 3) / 2):
        read = decode_payload(encode_payload(Subnet({"a": variant}), run="r", round=1), limit=LIMIT)
        np.testing.assert_array_equal(read.subnet.tensors["a"], array)
        assert encode_payload(Subnet({"a": variant}), run="r", round=1)[-4:] == struct.pack("<f", 5.0)


def test_a_payload_is_written_tensor_by_tensor() -> None:
    subnet = Subnet({f"t{i}": np.ones(250_000, np.float32) for i in range(8)})

    class Sink(io.RawIOBase):
        size = 0

        def write(self, data: Any) -> int:
            self.size += len(data)
            return len(data)

    sink = Sink()
    tracemalloc.start()
    write_payload(sink, subnet, run="r", round=1)  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sink.size == len(encode_payload(subnet, run="r", round=1)) > 8_000_000
    assert peak < 500_000


def test_decoding_copies_nothing() -> None:
    data = encode_payload(Subnet({f"t{i}": np.ones(250_000, np.float32) for i in range(8)}), run="r", round=1)
    decode_payload(data, limit=len(data))
    tracemalloc.start()
    decode_payload(data, limit=len(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


def test_a_payload_file_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "update"
    path.write_bytes(small_payload())
    with open_payload(path, limit=LIMIT) as payload:
        assert payload.subnet.tensors["conv.weight"][0].tolist() == [1.0, -2.0, 0.5]
    kept = payload.subnet.tensors["conv.weight"]
    del payload
    path.unlink()
    assert kept[0].tolist() == [1.0, -2.0, 0.5]  # an array that is kept keeps the file's bytes


def test_a_payload_file_that_is_empty_or_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "update"
    path.touch()
    with pytest.raises(MalformedPayload, match="0 bytes"), open_payload(path, limit=LIMIT):
        pass
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MalformedPayload, match=str(1 << 40)), open_payload(path, limit=LIMIT):
        pass


F4 = struct.pack("<f", 1.0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "begin"),
        (b"TLR1", "begin"),
        (b"TLR2" + small_payload()[4:], "begin"),
        (b"TLR1" + struct.pack("<I", 2**32 - 1) + bytes(100), "4294967295"),
        (b"TLR1" + struct.pack("<I", 100) + bytes(99), "100 bytes"),
        (b"TLR1" + struct.pack("<I", 1) + b"\x90", "map"),
        (small_payload() + b"\x00", "the payload has"),
        (small_payload()[:-1], "the payload has"),
        (payload_of({"protocol": 2}), "version 2 is not 1"),
        (payload_of({"unknown": 2}), "unknown"),
        (payload_of({"weight": float("nan")}), "weight"),
        (payload_of({"weight": -1.0}), "weight"),
        (payload_of({"metrics": {"loss": float("inf")}}), "loss"),
        (payload_of({"tensors": (tensor("a", "object", 1),)}, bytes(8)), "dtype"),
        (payload_of({"tensors": (tensor("a", ">f4", 1),)}, F4), "dtype"),
        (payload_of({"tensors": (tensor("a", "float32", -1),)}, F4), "shape"),
        (payload_of({"tensors": (tensor("a", "float32", *[1] * 9),)}, F4), "shape"),
        (payload_of({"tensors": (tensor("", "float32", 1),)}, F4), "name"),
        (payload_of({"tensors": (tensor("a", "float32", 2),)}, F4), "the payload has"),
        (payload_of({"tensors": (tensor("a", "float32", 2**39, 2**39),)}, F4), "exceeds"),
        (payload_of({"tensors": (tensor("a", "float32", 2**39, 2**39, 0),)}), "exceeds"),
        (payload_of({"tensors": (tensor("a", "float32", 10 * 2**30),)}, F4), "exceeds"),
        (payload_of({"tensors": (tensor("a", "float32", 1),) * 2}, F4 + bytes(60) + F4), "twice"),
        (payload_of({"tensors": (tensor("a", "float32", 1),) * 2}, F4 + b"\1" * 60 + F4), "padding"),
        (payload_of({"tensors": (tensor("a", "bool", 2),)}, b"\1\2"), "truth"),
        (payload_of({"masks": {"g": b"\x80"}}), "same groups"),
        (payload_of({"units": {"g": 1}}), "same groups"),
        (payload_of({"masks": {"g": b"\x80"}, "units": {"h": 1}}), "same groups"),
        (payload_of({"masks": {"g": b"\x80"}, "units": {"g": 9}}), "1 bytes for 9 units"),
        (payload_of({"masks": {"g": b"\x80\0"}, "units": {"g": 8}}), "2 bytes for 8 units"),
        (payload_of({"masks": {"g": b"\x88"}, "units": {"g": 4}}), "beyond"),
        (payload_of({"masks": {"g": b"\x00"}, "units": {"g": 4}}), "no unit"),
        (payload_of({"masks": {"g": b""}, "units": {"g": 0}}), "units"),
    ],
)
def test_a_payload_that_is_wrong_is_refused_with_the_reason(data: bytes, said: str) -> None:
    tracemalloc.start()
    with pytest.raises(MalformedPayload, match=said):
        decode_payload(data, limit=LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_the_limit_is_checked_first() -> None:
    with pytest.raises(MalformedPayload, match="at most 10"):
        decode_payload(small_payload(), limit=10)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 2, 3, 1000, 600_001])
def test_one_value_that_is_not_finite_is_found_anywhere(dtype: Any, value: float, size: int) -> None:
    for at in {0, size // 2 - 1, size // 2, size - 1} - {-1}:
        array = np.zeros(size, dtype)
        array[at] = value
        data = encode_payload(Subnet({"ok": np.ones(3, np.float32), "bad": array}), run="r", round=1)
        with pytest.raises(MalformedPayload, match="'bad'"):
            decode_payload(data, limit=1 << 23)


def test_the_largest_finite_values_are_taken() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        array = np.full(1001, np.finfo(dtype).max, dtype)
        array[::2] *= -1
        read = decode_payload(encode_payload(Subnet({"a": array}), run="r", round=1), limit=LIMIT)
        np.testing.assert_array_equal(read.subnet.tensors["a"], array)


@settings(max_examples=500)
@given(st.data())
def test_a_payload_with_bytes_changed_is_valid_or_refused(data: st.DataObject) -> None:
    with suppress(MalformedPayload):
        read = decode_payload(mutated(small_payload(), data), limit=LIMIT)
        assert all(np.isfinite(array).all() for array in read.subnet.tensors.values())


@given(st.binary(max_size=300))
@example(bytes(300))
def test_random_bytes_after_the_magic_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedPayload):
        decode_payload(b"TLR1" + data, limit=LIMIT)


def test_a_header_larger_than_may_be_is_not_written_either() -> None:
    crowd = {f"a-rather-long-name-for-a-tensor-{i}": np.zeros(1, np.float32) for i in range(20_000)}
    with pytest.raises(ValueError, match="header of 20000 tensors"):
        encode_payload(Subnet(crowd), run="r", round=1)


def test_an_offer_is_announced_with_the_size_that_the_payload_has() -> None:
    offer = decode_uplink(golden("offer"))
    assert isinstance(offer, Offer)
    assert (offer.blob.chunks, offer.blob.pages) == (2, 1)
