"""Runs of an algorithm that prunes, and updates of devices that hold only some channels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.checkpoints import Checkpoint, RunDirectory, RunRecord
from coordinator.definition import Definition
from coordinator.events import Snapshot
from coordinator.ledger import Ledger
from coordinator.preparation import make_definition
from shared.channels import ChannelLayout
from shared.codec import Payload, decode_payload, encode_payload, open_payload
from shared.config import RunConfig
from shared.encoding import Encoding
from shared.pruning import take
from shared.tensors import Masks, Subnet, Tensors

ROUNDS = {"count": 2, "quorum": 2, "min_devices": 2, "deadline_s": 60.0, "personalize_deadline_s": 60.0}


def pruning_config(
    overlap: str = "agreed", encoding: str = "link", target: Mapping[str, float] | None = None, **rounds: Any
) -> RunConfig:
    """Hermes on a small network: its fake devices prune as their test wants it."""
    return RunConfig.model_validate(
        {
            "model": {"name": "digitscnn"},
            "algorithm": {"name": "hermes", "overlap": overlap, "target": dict(target or {"parameters": 0.5})},
            "rounds": ROUNDS | rounds,
            "transfer": {"stall_s": 0.2, "encoding": encoding},
        }
    )


def pruning_run(path: Path, config: RunConfig) -> RunDirectory:
    """The folder of such a run, about to begin; its template is a stand-in."""
    directory = RunDirectory(path)
    directory.create(RunRecord("run", config))
    make_definition(directory)
    directory.template.write_bytes(b"template")
    directory.save(Checkpoint(Snapshot()))
    return directory


def layout_of(directory: RunDirectory) -> ChannelLayout:
    layout = Definition.load(directory.definition.read_bytes()).layout
    assert layout is not None
    return layout


def first(layout: ChannelLayout, share: float) -> Masks:
    """The first channels of every group are held."""
    return {group: np.arange(units) < share * units for group, units in layout.groups.items()}


def last(layout: ChannelLayout, share: float) -> Masks:
    return {group: mask[::-1].copy() for group, mask in first(layout, share).items()}


def decode(data: bytes) -> Payload:
    return decode_payload(data, limit=2**30)


def read(path: Path) -> Payload:
    return decode(path.read_bytes())


def close(directory: RunDirectory, number: int, updates: Mapping[str, bytes]) -> Ledger:
    """Round `number` with these updates, from the first to the checkpoint of the next one."""
    ledger = Ledger(directory, number)
    for device, data in updates.items():
        path = directory.incoming(number) / device
        path.write_bytes(data)
        ledger.take(device, number, path, 0)
    ledger.close(number)
    directory.save(Checkpoint(Snapshot(closed=number)))
    return ledger


def update(
    directory: RunDirectory,
    number: int,
    held: Masks | None,
    change: float = 1.0,
    encoding: Encoding = Encoding.FLOAT32,
    seed: int = 0,
) -> bytes:
    """The global tensors, cut to the channels that are held, and noise of the size `change` on everything; as a
    difference where the encoding is lossy."""
    with open_payload(directory.global_payload(number), limit=2**30) as payload:
        start = take(payload.subnet.tensors, layout_of(directory), held)
        noise = np.random.default_rng(seed)
        tensors: Tensors = {}
        for name, array in start.items():
            if array.dtype.kind == "f":
                moved = (change * noise.normal(size=array.shape)).astype(np.float32)
                if encoding is Encoding.FLOAT32:
                    moved = abs(array + moved) if "running_var" in name else array + moved
                tensors[name] = moved
            else:
                tensors[name] = array + number
    return encode_payload(
        Subnet(tensors, held),
        run="run",
        round=number,
        examples=5,
        weight=5.0,
        encoding=encoding,
        delta=encoding is not Encoding.FLOAT32,
    )
