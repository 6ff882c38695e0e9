"""Targets that read what comes off the wire: messages, payloads, templates, requests."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import zstandard
from script import Script

from edge_agent import infer_service
from shared import codec
from shared.codec import MAGIC, decode_payload, encode_message, encode_payload
from shared.errors import DataError, ExportError, MalformedMessage, MalformedPayload
from shared.messages import InferRequest
from shared.onnx_file import fill, parse

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
