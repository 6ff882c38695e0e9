"""Makes the dense ONNX template of a run, in a process of its own: the export needs more memory and time than a round.

python -m coordinator.make_template RUN_DIR
"""

import os
import sys
from pathlib import Path

from coordinator.checkpoints import RunDirectory
from coordinator.definition import model_of
from coordinator.template import dense_template
from shared.files import atomic_write
from shared.models import example_input
from shared.onnx_file import ModelCard


def make_template(directory: RunDirectory) -> None:
    """Write template.onnx into the run's folder. ModelError where the model has no ONNX form."""
    record = directory.record()
    model = record.config.model
    card = ModelCard(run=record.run, model=model.name, model_options=model.options)
    module = model_of(record.config).eval()
    atomic_write(
        directory.template, dense_template(module, example_input(model.name, model.options), card.properties())
    )


if __name__ == "__main__":
    os.nice(10)  # rounds come first
    make_template(RunDirectory(Path(sys.argv[1])))
