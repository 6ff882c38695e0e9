"""From what labels are called to numbers."""

from collections.abc import Sequence

import numpy as np

from edge_agent.data.dataset import Integers
from shared.errors import DataError
from shared.plugins import nearest


def as_indices(names: Sequence[str], classes: tuple[str, ...], where: str) -> tuple[tuple[str, ...], Integers]:
    """(classes, index of each name in them); by default the names that occur, sorted. DataError for any other name."""
    known = classes or tuple(sorted(set(names)))
    number = {name: index for index, name in enumerate(known)}
    if strange := next((name for name in names if name not in number), None):
        raise DataError(
            f"{where}: {strange!r} is none of data.options.classes ({', '.join(known)}){nearest(strange, known)}"
        )
    return known, np.array([number[name] for name in names], np.int64)
