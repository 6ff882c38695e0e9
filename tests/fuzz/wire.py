"""Targets that read what comes off the wire: messages, payloads, templates, requests, signatures, chunks."""

import hashlib
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from script import Script, clean_folder

from edge_agent import infer_service
from shared import codec
from shared.chunks import Assembly, chunk_length
from shared.codec import MAGIC, decode_payload, encode_message, encode_payload
from shared.errors import DataError, DigestMismatch, ExportError, MalformedMessage, MalformedPayload
from shared.files import not_waiting_for_the_disk
from shared.messages import (
    Blob,
    InferRequest,
    Sealed,
)
from shared.onnx_file import fill, parse
from shared.seal import Verifier, signed_bytes

LIMIT = 1 << 20


# --- decoders -------------------------------------------------------------------------------------------------------

DECODERS = (
    codec.decode_coordinator,
    codec.decode_presence,
    codec.decode_vitals,
    codec.decode_sealed,
    codec.decode_task,
    codec.decode_uplink,
    codec.decode_downlink,
    codec.decode_infer_request,
    codec.decode_infer_reply,
)


def messages(data: bytes) -> None:
    """First byte: which decoder. What it takes is the same message when it is sent on."""
    decode: Any = DECODERS[data[0] % len(DECODERS)] if data else DECODERS[0]
    try:
        message = decode(data[1:])
    except MalformedMessage:
        return
    assert decode(encode_message(message)) == message


def payloads(data: bytes) -> None:
    """First byte: the payload as it is, or header and body put into an envelope, the body compressed by us, so that
    what is behind lengths and checksums is reached."""
    mode, rest = data[:1], data[1:]
    if mode > b"\x7f":
        size = int.from_bytes(rest[:2], "little")
        header, body = rest[2 : 2 + size], rest[2 + size :]
        if mode > b"\xbf":
            body = zstandard.compress(body)
        rest = MAGIC + len(header).to_bytes(4, "little") + header + body
    try:
        payload = decode_payload(rest, limit=LIMIT)
    except MalformedPayload:
        return
    header, tensors, held = payload.header, payload.subnet.tensors, payload.subnet.held
    assert sum(array.nbytes for array in tensors.values()) <= LIMIT
    assert all(np.isfinite(array).all() for array in tensors.values() if array.dtype.kind == "f")
    assert [(spec.name, spec.shape) for spec in header.tensors] == [(n, a.shape) for n, a in tensors.items()]
    assert held is None or all(mask.any() for mask in held.values())
    if tensors or held:
        again = decode_payload(
            encode_payload(payload.subnet, run=header.run, round=header.round, weight=header.weight),
            limit=2 * LIMIT + len(rest),
        )
        assert again.header.weight == header.weight
        assert all(np.array_equal(again.subnet.tensors[name], array) for name, array in tensors.items())


_Card = {"run": "r", "round": "1", "labels": '["a","b"]'}


def template(data: bytes) -> None:
    """An ONNX template, filled with tensors of the names and shapes that it asks for."""
    script = Script(data)
    less = script.below(4)
    try:
        model = parse(data[1:], limit=LIMIT)
        tensors: dict[str, Any] = {}
        for wanted in model.graph.initializer:
            shape = tuple(max(0, size - (less == index + 1)) for index, size in enumerate(wanted.dims))
            if np.prod([max(1, size) for size in shape], dtype=object) > LIMIT:  # numpy has no such, empty or not
                return
            tensors[wanted.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(wanted.data_type))
        parse(fill(data[1:], tensors, _Card, limit=LIMIT), limit=2 * LIMIT)
    except ExportError:
        return


class _Sums:
    """Stands for the model in service: takes (n, 4), and any finite or other value."""

    def predict(self, raw: Any) -> Any:
        if raw.ndim != 2 or raw.shape[1] != 4:
            raise DataError(f"the model takes (n, 4), not {raw.shape}")
        with np.errstate(all="ignore"):
            powers = np.exp(raw - raw.max(axis=1, keepdims=True))
            probabilities = powers / powers.sum(axis=1, keepdims=True)
        classes = [int(row.argmax()) for row in probabilities]
        return SimpleNamespace(probabilities=probabilities, classes=classes, labels=["x" * 600] * len(classes))


def infer(data: bytes) -> None:
    """A request for inference: what decodes is answered with a reply that decodes."""
    try:
        request = codec.decode_infer_request(data)
    except MalformedMessage:
        size = min(data[0] if data else 0, 8)
        shape = tuple(max(1, byte) for byte in data[1 : 1 + size])
        if len(shape) < 2 or len(data) < 1 + size + 4:
            return
        request = InferRequest(id="i", shape=shape, data=data[1 + size :])
    reply = infer_service.answer(request, _Sums())  # type: ignore[arg-type]
    assert codec.decode_infer_reply(encode_message(reply)) == reply
    assert bool(reply.reason) or len(reply.predictions) == request.shape[0]


# --- signatures -----------------------------------------------------------------------------------------------------


@cache
def _key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def seals(data: bytes) -> None:
    """Signed by whom it may be, cut, mixed up, flipped and replayed: only what the right key said for this topic is
    believed, and never anything older than what was believed."""
    script = Script(data)
    verifier = Verifier([_key(1).public_key(), _key(2).public_key()])
    said: set[tuple[str, bytes]] = set()
    newest: dict[tuple[int, str], int] = {}
    wire: list[tuple[int, int, bytes]] = [(0, 0, b"")]
    for _ in range(12):
        if not script:
            return
        key, topic, number = script.below(4), script.of(("t", "tt", "")), 1 + script.below(5)
        action = script.below(5)
        if action == 0:
            body = b"b" + script.take(1)
            sealed = Sealed(number=number, body=body, signature=_key(key).sign(signed_bytes(topic, number, body)))
            payload = encode_message(sealed)
            wire.append((key, number, payload))
            if key in (1, 2):
                said.add((topic, payload))
        else:
            key, number, payload = script.of(wire)
            if action == 1:
                at = script.below(max(1, len(payload)))
                payload = payload[:at] + script.take(1) + payload[at + 1 :]
            elif action == 2:
                payload = payload[: script.below(max(1, len(payload)))] + script.take(script.below(8))
            elif action == 3:
                payload = script.take(64)
        try:
            body = verifier.open(topic, payload)
        except MalformedMessage:
            assert (topic, payload) not in said or number < newest.get((key, topic), 0)
            continue
        assert (topic, payload) in said
        assert number >= newest.get((key, topic), 0)
        newest[key, topic] = number


# --- transfers ------------------------------------------------------------------------------------------------------


def chunks(data: bytes) -> None:
    """An assembly whose chunks come in any order, wrong, twice, across restarts, and for another payload meanwhile."""
    script = Script(data)
    with not_waiting_for_the_disk():
        path = clean_folder() / "payload"
        content = bytes(range(256)) * 12
        sizes = [(len(content), 512), (len(content) - 100, 1024)]
        blobs = [Blob(digest=hashlib.sha256(content[:s]).hexdigest(), size=s, chunk=c) for s, c in sizes]
        blob = blobs[0]
        assembly, have, spoilt = Assembly(path, blob), set[int](), False
        for _ in range(40):
            if not script:
                return
            match script.below(8):
                case 0 | 1 | 2:
                    index = script.below(8)
                    good = content[: blob.size][index * blob.chunk : (index + 1) * blob.chunk]
                    wrong = script.below(6) == 1
                    part = good[::-1] if wrong else good
                    try:
                        new = assembly.add(index, part)
                    except MalformedPayload:
                        assert index >= blob.chunks
                        continue
                    assert new == (index not in have)
                    spoilt |= new and part != good
                    have.add(index)
                case 3:
                    try:
                        assembly.add(script.below(12), script.take(script.below(40)))
                        raise AssertionError("a chunk of another length was taken")
                    except MalformedPayload:
                        pass
                case 4:
                    assembly.save()
                case 5:
                    assembly = Assembly(path, blob)  # killed, and started again
                    left = {i for i in range(blob.chunks) if not any(a <= i < b for a, b in assembly.missing())}
                    assert left <= have
                    have, spoilt = left, spoilt and bool(left)
                case 6:
                    blob = script.of(blobs)
                    assembly = Assembly(path, blob)
                    have = {i for i in range(blob.chunks) if not any(a <= i < b for a, b in assembly.missing())}
                    spoilt = spoilt and bool(have)
                case 7 if assembly.complete:
                    try:
                        found = assembly.finish().read_bytes()
                        assert hashlib.sha256(found).hexdigest() == blob.digest
                    except DigestMismatch:
                        assert spoilt
                        have, spoilt = set(), False
            assert assembly.complete == (len(have) == blob.chunks)
            assert assembly.received == sum(chunk_length(blob, index) for index in have)
