"""How long inference takes on this device with some of a network's channels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_agent.latency import measure
from edge_agent.plan import Work
from shared.errors import ExportError, TrainingError
from shared.model_state import state_views
from shared.onnx_file import INPUT, OUTPUT, fill
from shared.onnx_runtime import open_session
from shared.profiles import Profile
from shared.pruning import take
from shared.tensors import Masks


def stopwatch(
    template: Path, work: Work, profile: Profile, check_time: Callable[[], None]
) -> Callable[[Masks], float] | None:
    """Measures the median milliseconds of one example in ONNX Runtime, as the profile wants it to infer. None where the
    plan's algorithm does not prune.

    template    dense, as it came off the wire
    check_time  called before each measurement
    The function takes half a second and more. It raises TrainingError where the template cannot be run.
    """
    layout, tensors = work.setup.layout, state_views(work.setup.model)
    example = np.zeros((1, *work.example.shape[1:]), np.float32)
    if layout is None:
        return None

    def latency_ms(held: Masks) -> float:
        check_time()
        try:
            session = open_session(
                fill(template.read_bytes(), take(tensors, layout, held), {}),
                providers=profile.inference.providers,
                threads=profile.inference.threads,
            )
        except ExportError as error:
            raise TrainingError(f"algorithm.target.latency_ms cannot be measured: {error}") from error
        return measure({"": lambda: session.run([OUTPUT], {INPUT: example})})[""].p50

    return latency_ms
