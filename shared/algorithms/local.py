"""Local training only: nothing travels. The baseline that joining a fleet has to beat.

A device trains in the rounds that it is asked in, `epochs` each, and goes on from its own model in the next. It is
FedPer with nothing but a head.
"""

from typing import Any

from torch import nn

from shared.algorithms.base import Algorithm


def nothing(model: nn.Module, hp: Any) -> frozenset[str]:
    """No name of the model's state travels."""
    return frozenset()


LOCAL = Algorithm(name="local", paper="", share=nothing, partial=True)
