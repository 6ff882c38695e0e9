"""How a fleet fares, in a few numbers: means, and the devices that are left behind. Pure: no tensors, no I/O."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

TEST_EXAMPLES = "test_examples"
"""The metric that says how many examples a device's accuracies were taken on."""
MOST_EXAMPLES = 2.0**40
"""More than a payload's header can claim, either."""


@dataclass(frozen=True)
class Spread:
    """One value per device, of which more is better.

    count          devices
    weighted_mean  sum(weight * value) / sum(weight), the weight being the device's test examples
    mean           every device counts the same
    deviation      standard deviation of the devices (population: divided by their number)
    p10            tenth percentile: of the values in ascending order, counted from 0, the one at place
                   0.1 * (count - 1), on the straight line between its neighbours (as numpy.percentile)
    worst          least value; worst_device: whose, the first by name among equals
    """

    count: int
    weighted_mean: float
    mean: float
    deviation: float
    p10: float
    worst: float
    worst_device: str


def spread(values: Mapping[str, float], weights: Mapping[str, float]) -> Spread:
    """The spread of device -> value. `weights`: device -> weight above 0, at least for the same devices.

    The same to the last bit, in whatever order the devices come. ValueError where there is no device.
    """
    if not values:
        raise ValueError("no device, no spread")
    mean = fmean(values.values())
    worst = min(values, key=lambda device: (values[device], device))
    return Spread(
        count=len(values),
        weighted_mean=fmean(values.values(), [weights[device] for device in values]),
        mean=mean,
        deviation=math.sqrt(fmean((value - mean) ** 2 for value in values.values())),
        p10=_percentile(sorted(values.values()), 0.1),
        worst=values[worst],
        worst_device=worst,
    )


def accuracy_spread(metrics: Mapping[str, Mapping[str, float]], name: str) -> Spread | None:
    """The spread of the accuracy `name` over the devices whose metrics hold it and their test examples; None: nobody's.

    metrics  device -> what it reported. What cannot be (an accuracy outside of 0 to 1, no examples) does not count
    """
    told = {device: each for device, each in metrics.items() if name in each and TEST_EXAMPLES in each}
    sane = {d: m for d, m in told.items() if 0 <= m[name] <= 1 <= m[TEST_EXAMPLES] <= MOST_EXAMPLES}
    if not sane:
        return None
    return spread({d: m[name] for d, m in sane.items()}, {d: m[TEST_EXAMPLES] for d, m in sane.items()})


def _percentile(ascending: list[float], share: float) -> float:
    place = share * (len(ascending) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (place - below) * (ascending[above] - ascending[below])
