"""Named arrays: what travels, what is aggregated, what is remembered. No torch here; shared.model_state has the way
between these and a model."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = dict[str, Array]
Masks: TypeAlias = dict[str, npt.NDArray[np.bool_]]
"""Channel group -> one bool per unit (channel) of the group: True where it is held."""


@dataclass(frozen=True)
class Subnet:
    """Some coordinates of a model: what travels in both directions, and what a device remembers.

    tensors  name -> array; its shape is the dense one, cut down to the held channels on every axis that a group owns
    held     the channels that are held, one bool per unit of every group; None: all of them (tensors are dense)
    """

    tensors: Tensors
    held: Masks | None = None
