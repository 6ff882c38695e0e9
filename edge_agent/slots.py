"""The model in service and the one before it, in two slots.

    models/a/, models/b/   whole versions: model.onnx, and what it was made from and proved with: template.onnx,
                           personal.payload, reference.npz
    models/current         symbolic link to the slot in service
    models/incoming/       a version in the making; worth nothing after a restart

A slot only ever appears whole, by a rename, and `current` is replaced in one step: whatever kills the process or the
power, the model in service is the old one or the new one.
"""

import shutil
from pathlib import Path

from shared.errors import ExportError
from shared.files import sync_directory, sync_file

MODEL = "model.onnx"
TEMPLATE = "template.onnx"
PERSONAL = "personal.payload"
REFERENCE = "reference.npz"

_SLOTS = ("a", "b")


def in_service(models: Path) -> Path:
    """The folder of the model in service; ExportError if there is none."""
    current = models / "current"
    if not (current / MODEL).is_file():
        raise ExportError(f"no model is in service below {models}: a run ends with one, or name a file with --model")
    return models / current.readlink()


def prepare(models: Path) -> Path:
    """An empty folder for the files of a new version, which `commit` puts in service. Any earlier one is dropped."""
    incoming = models / "incoming"
    if incoming.exists():
        shutil.rmtree(incoming)
    incoming.mkdir(parents=True)
    return incoming


def commit(models: Path) -> None:
    """Put the prepared version in service, durably. The one in service until now becomes the previous one."""
    incoming = models / "incoming"
    for path in incoming.iterdir():
        sync_file(path)
    sync_directory(incoming)
    slot = models / _other(models)
    if slot.exists():
        shutil.rmtree(slot)
    incoming.replace(slot)
    sync_directory(models)
    _switch(models, slot.name)


def rollback(models: Path) -> Path:
    """Put the previous version in service again, and return its folder; ExportError if there is none.

    The version that was in service is kept as the previous one, so a second rollback undoes the first.
    """
    slot = models / _other(models)
    if not (slot / MODEL).is_file():
        raise ExportError(f"no previous model below {models}: there is nothing to go back to")
    _switch(models, slot.name)
    return slot


def _other(models: Path) -> str:
    """The slot that is not in service."""
    current = models / "current"
    return _SLOTS[1] if current.is_symlink() and current.readlink().name == _SLOTS[0] else _SLOTS[0]


def _switch(models: Path, slot: str) -> None:
    link = models / "current.new"
    link.unlink(missing_ok=True)
    link.symlink_to(slot)
    link.replace(models / "current")
    sync_directory(models)
