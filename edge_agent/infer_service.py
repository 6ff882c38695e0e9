"""Inference on request over MQTT: answers on one topic what is asked on another, until the link is closed."""

import asyncio
import logging
from pathlib import Path

import numpy as np

from edge_agent import slots
from edge_agent.inference import Network
from shared.codec import Decoder, encode_message
from shared.errors import DataError, ExportError, MalformedMessage
from shared.link import Link, Received
from shared.messages import InferReply, InferRequest, Prediction
from shared.profiles import Profile
from shared.topics import Topics

log = logging.getLogger(__name__)

_decode = Decoder[InferRequest](InferRequest)


class InService:
    """The model in service below a folder, loaded again whenever another one has taken its place."""

    def __init__(self, models: Path, profile: Profile, *, threads: int | None = None) -> None:
        self._models = models
        self._profile = profile
        self._threads = threads
        self._loaded: tuple[int, Network] | None = None

    def network(self) -> Network:
        """ExportError if there is none."""
        path = slots.in_service(self._models) / slots.MODEL
        inode = path.stat().st_ino
        if self._loaded is None or self._loaded[0] != inode:
            self._loaded = inode, Network(path, self._profile, threads=self._threads)
        return self._loaded[1]


def answer(request: InferRequest, network: Network) -> InferReply:
    """The reply to one request; what is wrong with it is said in the reply."""
    examples = request.shape[0]
    if examples > 1024 or 4 * int(np.prod(request.shape, dtype=object)) != len(request.data):
        return InferReply(id=request.id, reason=f"{len(request.data)} bytes are not float32 of shape {request.shape}")
    raw = np.frombuffer(request.data, dtype="<f4").reshape(request.shape)
    try:
        found = network.predict(raw)
    except DataError as error:
        return InferReply(id=request.id, reason=str(error)[:500])
    if not np.isfinite(found.probabilities).all():
        return InferReply(id=request.id, reason="the examples are not finite, or too large for the model")
    predictions = tuple(
        Prediction(label=label[:500], number=number, probability=min(1.0, float(row[number])))
        for label, number, row in zip(found.labels, found.classes, found.probabilities, strict=True)
    )
    return InferReply(id=request.id, predictions=predictions)


async def serve(link: Link, topics: Topics, device: str, models: InService) -> None:
    """Answer the requests that arrive on this link, which has subscribed to `topics.infer(device)`, one at a time,
    until it is closed (LinkClosed)."""
    while True:
        event = await link.receive()
        if not isinstance(event, Received) or event.topic != topics.infer(device) or event.retained:
            continue
        try:
            request = _decode(event.payload)
        except MalformedMessage as error:
            log.warning("request refused: %s", error)
            continue
        try:
            reply = await asyncio.to_thread(lambda: answer(request, models.network()))  # noqa: B023
        except ExportError as error:
            reply = InferReply(id=request.id, reason=str(error)[:500])
        await link.publish(topics.inferred(device), encode_message(reply))
