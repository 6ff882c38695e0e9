"""The global model of a run as a file: ONNX to run it, or a payload that another run can start from."""

from pathlib import Path
from typing import Literal, TypeAlias

from coordinator.checkpoints import RunDirectory
from coordinator.definition import model_of
from coordinator.downloads import write_tensors
from coordinator.preparation import make_template
from coordinator.template import export_global
from shared.codec import open_payload
from shared.config import RunConfig
from shared.errors import StateError
from shared.model_state import state_tensors
from shared.onnx_file import ModelCard
from shared.tensors import Subnet, Tensors

Format: TypeAlias = Literal["onnx", "payload"]


def export_model(directory: RunDirectory, path: Path, form: Format) -> tuple[int, int]:
    """Write the global tensors of the last closed round; (that round, size of the file in bytes).

    Names that are not shared have the values that the run began with: what devices learnt of them never left them.
    StateError if the folder holds no run, ModelError or ExportError where the model has no ONNX form.
    """
    record, checkpoint = directory.record(), directory.peek()
    if checkpoint is None:
        raise StateError(f"{directory.path} holds no checkpoint yet: the run has not begun")
    tensors = _initial(directory, record.config) | _tensors(directory.global_payload(checkpoint.round))
    closed = checkpoint.round - 1
    if form == "payload":
        write_tensors(path, Subnet(tensors), record.run, closed)
    else:
        if not directory.template.exists():
            make_template(directory)
        card = ModelCard(run=record.run, round=closed)
        export_global(directory.template.read_bytes(), tensors, card.properties(), path)
    return closed, path.stat().st_size


def _initial(directory: RunDirectory, config: RunConfig) -> Tensors:
    """The complete state that the run began with."""
    return state_tensors(model_of(config)) if config.model.initial is None else _tensors(directory.initial)


def _tensors(path: Path) -> Tensors:
    """Of a payload that this run wrote; they stay mapped for as long as they are used."""
    with open_payload(path, limit=path.stat().st_size) as payload:
        return payload.subnet.tensors
