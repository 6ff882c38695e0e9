"""The global model of a run as an ONNX file."""

from pathlib import Path

from coordinator.checkpoints import RunDirectory
from coordinator.definition import model_of
from coordinator.preparation import make_template
from coordinator.template import export_global
from shared.codec import open_payload
from shared.errors import StateError
from shared.model_state import state_tensors
from shared.onnx_file import ModelCard


def export_model(directory: RunDirectory, path: Path) -> tuple[int, int]:
    """Write the global tensors of the last closed round; (that round, size of the file in bytes).

    Names that are not shared have the values that the run began with: what devices learnt of them never left them.
    StateError if the folder holds no run, ModelError or ExportError where the model has no ONNX form.
    """
    record, checkpoint = directory.record(), directory.peek()
    if checkpoint is None:
        raise StateError(f"{directory.path} holds no checkpoint yet: the run has not begun")
    if not directory.template.exists():
        make_template(directory)
    tensors = state_tensors(model_of(record.config))
    source = directory.global_payload(checkpoint.round)
    with open_payload(source, limit=source.stat().st_size) as payload:
        tensors |= payload.subnet.tensors
        closed = checkpoint.round - 1
        card = ModelCard(run=record.run, round=closed)
        return closed, export_global(directory.template.read_bytes(), tensors, card.properties(), path)
