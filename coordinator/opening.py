"""A run's folder, made or found again, with everything in it that a run needs of its model."""

import asyncio
import re
import secrets
import time
from typing import TYPE_CHECKING

from coordinator.checkpoints import Checkpoint, RunDirectory, RunRecord
from coordinator.events import Snapshot
from coordinator.preparation import Preparation
from shared.config import RunConfig
from shared.config_rounds import AdmissionSettings
from shared.errors import ConfigError, TalariaError

if TYPE_CHECKING:
    from coordinator.ledger import Ledger

COMPARED = ("model", "algorithm", "rounds", "aggregation")
"""Sections that must be the same when a run goes on."""


async def open_run(config: RunConfig, directory: RunDirectory, preparation: Preparation) -> RunRecord:
    """The run of this folder; begun where there is none yet. The caller holds the folder's lock.

    ConfigError where it was begun with other settings that matter to it, or these make no model.
    """
    if directory.exists:
        record = directory.record()
        _compare(directory, config, record.config)
    else:
        name = re.sub(r"[^A-Za-z0-9]+", "-", config.algorithm.name)[-30:]
        record = RunRecord(f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(3)}", config)
        directory.create(record)
    try:
        await asyncio.gather(preparation.define(directory), asyncio.to_thread(_import_torch))
    except TalariaError:
        if not directory.definition.exists():
            directory.discard()
        raise
    return record


def load_run(directory: RunDirectory, admission: AdmissionSettings) -> "tuple[Checkpoint, Ledger]":
    """The run as it stands on the disk. Blocks."""
    from coordinator.ledger import Ledger

    checkpoint = directory.load()
    if checkpoint is None:
        checkpoint = Checkpoint(Snapshot())
        directory.save(checkpoint)
    return checkpoint, Ledger(directory, checkpoint.round, admission)


def _compare(directory: RunDirectory, now: RunConfig, before: RunConfig) -> None:
    changed = [name for name in COMPARED if getattr(now, name) != getattr(before, name)]
    changed += [f"run.{name}" for name in ("fleet", "seed") if getattr(now.run, name) != getattr(before.run, name)]
    if changed:
        raise ConfigError(
            f"{directory.path} holds a run that was started with another {', '.join(changed)}; "
            "take those settings back, or give another run directory"
        )


def _import_torch() -> None:
    """Takes a second or two, which the preparation needs anyway: so here, and not at the top."""
    import torch

    import coordinator.ledger  # noqa: F401

    # Folding is bound by memory, not by arithmetic: more threads only wait for each other, on a busy machine for long.
    torch.set_num_threads(1)
