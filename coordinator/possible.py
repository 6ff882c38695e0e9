"""What the statistics of a normalization layer can be, whatever a device says: a variance is at least 0, a counter too.

One negative variance makes every output NaN. A device that tells values (float32) tells possible ones or lies, so
admission refuses impossible ones. A difference is added to what the device started from, where rounding, or a lossy
encoding, may end below 0 for an honest device as well. So nothing is refused for that, but the update counts in the
round as the nearest that a model can be, before any rule sees it; and so does what a rule makes of it by its rounding.
"""

import numpy as np

from shared.errors import RefusedUpdate
from shared.tensors import Array, Subnet

AT_LEAST_0 = ("running_var", "num_batches_tracked")
"""How torch calls them, in every layer that has them."""
LARGEST_COUNT = 2**53
"""Devices count on from here without an overflow: past that, their own counters would be negative."""


def check_possible(name: str, array: Array) -> None:
    """RefusedUpdate for values of this tensor that no model has."""
    if _at_least_0(name) and array.size and array.min() < 0:
        raise RefusedUpdate("impossible_value", f"{name} holds {array.min()}; no variance and no count is below 0")


def possible(subnet: Subnet) -> Subnet:
    """The nearest that a model can be."""
    return Subnet(
        {name: _nearest(array) if _at_least_0(name) else array for name, array in subnet.tensors.items()}, subnet.held
    )


def _at_least_0(name: str) -> bool:
    return name.rpartition(".")[2] in AT_LEAST_0


def _nearest(array: Array) -> Array:
    most = None if array.dtype.kind == "f" else min(LARGEST_COUNT, np.iinfo(array.dtype).max // 2)
    return np.clip(array, 0, most)
