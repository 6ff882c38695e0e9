"""Everything that is on the broker during a run is searched for what must stay on the devices."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from processes import Agent, Sniffer, System

from shared.codec import decode_uplink, open_payload
from shared.config_data import DataSettings
from shared.messages import Chunk, Offer
from shared.tensors import Array, Tensors

DEVICES = ("phone", "pi")
WINDOW = 16
"""Bytes in a row that cannot be the same by chance: four float32 values."""


async def test_neither_heads_nor_data_are_ever_on_the_broker(system: System) -> None:
    system.start_broker()
    sniffer = await system.sniffer()
    examples = {name: _examples(system.folder / f"{name}.npz", seed) for seed, name in enumerate(DEVICES)}
    coordinator = await system.coordinator("fedper", devices=2, rounds=2)
    agents = [
        await system.agent(name, data=DataSettings(source="npz", path=system.folder / f"{name}.npz"))
        for name in DEVICES
    ]
    heads: list[Tensors] = []
    for number in (1, 2):  # what a device remembers is overwritten in the next round
        for agent in agents:
            await coordinator.event("accepted", device=agent.config.device, round=number)
            heads.append(_head(agent))
    await coordinator.finished()
    for agent in agents:
        assert await agent.ended() == 0
        heads.append(_head(agent))
    wire = _windows(_everything(sniffer))

    assert len({name for head in heads for name in head}) == 2, "weight and bias of the last layer"
    for head in heads:
        for name, array in head.items():
            assert not any(piece in wire for piece in _pieces(array)), f"{name} was on the wire"
    for name, raw in examples.items():
        for form in (raw, _normalized(raw)):
            assert not any(piece in wire for piece in _pieces(form)), f"examples of {name} were on the wire"
    said = b"".join(payload for topic, payload in sniffer.seen if "/blob/" not in topic)  # a template names all tensors
    for word in (*{name for head in heads for name in head}, "npz"):
        assert word.encode() not in said, f"{word!r} was said"

    # The search would have found them: what is shared is all there.
    with open_payload(coordinator.run_dir / "globals/00003.payload", limit=2**24) as shared:
        weights = [array for array in shared.subnet.tensors.values() if array.nbytes >= WINDOW]
        assert weights
        assert all(piece in wire for array in weights for piece in _pieces(array))


def _examples(path: Path, seed: int) -> Array:
    """Examples whose values are like no others."""
    inputs = np.random.default_rng(seed).normal(3.7, 1.3, (60, 1, 8, 8)).astype(np.float32)
    np.savez(path, x=inputs, y=np.arange(60) % 10)
    return inputs


def _normalized(raw: Array) -> Array:
    return ((raw - raw.mean()) / raw.std()).astype(np.float32)


def _head(agent: Agent) -> Tensors:
    """The local tensors that the device remembers now."""
    (memory,) = agent.config.state_dir.glob("generations/*/memory.payload")
    with open_payload(memory, limit=2**24) as payload:
        tensors = payload.subnet.tensors
        return {name.partition("/")[2]: a.copy() for name, a in tensors.items() if name.startswith("local/")}


def _everything(sniffer: Sniffer) -> bytes:
    """Every message as it was, and every update put together again: what is searched for may lie across chunks."""
    updates: dict[str, dict[int, bytes]] = {}
    blobs: dict[str, dict[int, bytes]] = {}
    offered = set()
    for topic, payload in sniffer.seen:
        if "/up/" in topic:
            message = decode_uplink(payload)
            if isinstance(message, Chunk):
                updates.setdefault(message.digest, {})[message.index] = message.data
            elif isinstance(message, Offer):
                offered.add(message.blob.digest)
        elif "/blob/" in topic and payload:
            _, _, digest, _, index = topic.split("/")
            blobs.setdefault(digest, {})[int(index)] = payload
    assert len(offered) == 4
    assert updates.keys() == offered
    whole = [b"".join(chunks[i] for i in sorted(chunks)) for chunks in (*updates.values(), *blobs.values())]
    return b"\0".join([*(topic.encode() + b" " + payload for topic, payload in sniffer.seen), *whole])


def _windows(wire: bytes) -> set[bytes]:
    """Every piece of it: a set, since thousands are looked for."""
    return {wire[start : start + WINDOW] for start in range(len(wire) - WINDOW + 1)}


def _pieces(array: Array) -> Iterator[bytes]:
    """The array's bytes in pieces that are searched for; of constant pieces nothing can be said."""
    data = np.ascontiguousarray(array).tobytes()
    for start in range(0, len(data) - WINDOW + 1, WINDOW):
        piece = data[start : start + WINDOW]
        if len(set(piece)) > 4:
            yield piece
