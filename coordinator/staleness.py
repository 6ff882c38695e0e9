"""What an update counts that started some rounds ago (Nguyen et al., AISTATS 2022, arXiv:2106.06639, section 5 and
algorithm 1).

With the tensors g_v that it started from, those that the open round n starts from, and x, what the device made of g_v,

    x' = g_n + s(n - v) (x - g_v)        s(t) = 1 / sqrt(1 + t)

takes the place of x in the round: the device's own step, shortened, from where the fleet is now. The mean of such x' is
the paper's server step with learning rate 1, any other rule, and any weight, works on them as on fresh updates, and
s(0) = 1 makes a fresh one itself. Statistics (BatchNorm's mean and variance) are no steps: a variance must not become
negative, as g_n + s (x - g_v) can. Of them x' is the mean g_n + s (x - g_n). Counters are x itself.
"""

import math
from collections.abc import Collection

from shared.channels import ChannelLayout
from shared.pruning import take
from shared.tensors import Subnet, Tensors


def scale(staleness: int) -> float:
    """s: what is left of a step that started so many rounds ago."""
    return 1 / math.sqrt(1 + staleness)


def moved_on(
    update: Subnet,
    start: Tensors,
    now: Tensors,
    staleness: int,
    *,
    delta: bool,
    statistics: Collection[str],
    layout: ChannelLayout | None,
) -> Subnet:
    """The update x' of this one.

    start, now  g_v and g_n, dense
    delta       the update's floats are x - g_v, not x
    statistics  names of float tensors that are no steps
    """
    if layout is not None:
        start, now = (take(each, layout, update.held) for each in (start, now))
    factor, tensors = scale(staleness), {}
    for name, array in update.tensors.items():
        if array.dtype.kind != "f":
            tensors[name] = array
            continue
        step = array if delta else array - start[name]
        if name in statistics:
            step = step + (start[name] - now[name])
        tensors[name] = now[name] + array.dtype.type(factor) * step
    return Subnet(tensors, update.held)
