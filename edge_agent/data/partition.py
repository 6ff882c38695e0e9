"""How a data set is divided over emulated devices. Every device computes the same division and takes its own part.

Deterministic: PCG64 from the seed, so that the same seed gives the same parts in every process with one numpy version.
"""

import numpy as np
import numpy.typing as npt

from edge_agent.data.dataset import Booleans, Integers
from shared.config_data import PartitionSettings
from shared.errors import DataError

DRAWS = 1000
"""How often an unlucky Dirichlet partition is drawn again before the settings are called impossible."""


def partition(
    labels: Integers, owners: Integers | None, settings: PartitionSettings, test: Booleans | None = None
) -> Integers:
    """Indices of the examples of device `settings.index`, ascending. DataError as `parts`."""
    return parts(labels, owners, settings, test)[settings.index]


def parts(
    labels: Integers, owners: Integers | None, settings: PartitionSettings, test: Booleans | None = None
) -> list[Integers]:
    """Indices of every device: disjoint, complete (but `whole`: every device has everything), ascending.

    labels  N class indices
    owners  N owner numbers, needed by `natural`
    test    N booleans: a source's own test split is divided in the same proportions as the rest
    DataError when a part would have fewer than `min_examples`.
    """
    if settings.kind == "whole":
        return [np.arange(len(labels))] * settings.devices
    if settings.devices * settings.min_examples > len(labels):
        raise DataError(
            f"{len(labels)} examples cannot give {settings.devices} devices {settings.min_examples} each: lower "
            "data.partition.devices or data.partition.min_examples"
        )
    found = _natural(owners, settings) if settings.kind == "natural" else _drawn(labels, settings, test)
    smallest = min(map(len, found))
    if smallest < settings.min_examples:
        raise DataError(
            f"the smallest part has {smallest} examples, data.partition.min_examples asks for {settings.min_examples}: "
            "lower it, or use fewer devices"
        )
    return [np.sort(part).astype(np.int64) for part in found]


def _natural(owners: Integers | None, settings: PartitionSettings) -> list[Integers]:
    """Owners dealt out in turn, in the order of their numbers."""
    if owners is None:
        raise DataError("this source knows no owners: choose another data.partition.kind")
    known, number = np.unique(owners, return_inverse=True)
    if settings.devices > len(known):
        raise DataError(f"{len(known)} owners cannot be dealt to {settings.devices} devices: lower their number")
    return [np.flatnonzero(number % settings.devices == device) for device in range(settings.devices)]


def _drawn(labels: Integers, settings: PartitionSettings, test: Booleans | None) -> list[Integers]:
    """Each stratum (class, and within it the test split) cut into shares of its own."""
    generator = np.random.Generator(np.random.PCG64(settings.seed))
    held_out = np.zeros(len(labels), bool) if test is None else test
    classes = np.unique(labels)
    if settings.kind == "iid":  # one pool, so that parts differ by one example at most
        strata = [[held_out], [~held_out]]
        shares = np.full((2, settings.devices), 1 / settings.devices)
    else:
        strata = [[(labels == label) & held_out, (labels == label) & ~held_out] for label in classes]
        sizes = np.array([[mask.sum() for mask in masks] for masks in strata])
        draw = _dirichlet if settings.kind == "dirichlet" else _by_classes
        shares = draw(generator, sizes, settings)
    found: list[list[Integers]] = [[] for _ in range(settings.devices)]
    for masks, share in zip(strata, shares, strict=True):
        for mask in masks:
            indices = generator.permutation(np.flatnonzero(mask))
            for device, piece in enumerate(np.split(indices, _cuts(share, len(indices)))):
                found[device].append(piece)
    return [np.concatenate(pieces) for pieces in found]


def _cuts(share: npt.NDArray[np.float64], count: int) -> Integers:
    """Where a stratum of `count` examples is cut, so that piece d holds share[d] of it, to one example."""
    return np.rint(np.cumsum(share)[:-1] * count).astype(np.int64)


def _dirichlet(generator: np.random.Generator, sizes: Integers, settings: PartitionSettings) -> npt.NDArray[np.float64]:
    """Per class (row) the share of every device, drawn again until every device has `min_examples`."""
    for _ in range(DRAWS):
        shares: npt.NDArray[np.float64] = generator.dirichlet(
            np.full(settings.devices, settings.alpha), size=len(sizes)
        )
        pieces = [
            np.diff(_cuts(share, size), prepend=0, append=size)
            for share, row in zip(shares, sizes, strict=True)
            for size in row
        ]
        if np.sum(pieces, axis=0).min() >= settings.min_examples:
            return shares
    raise DataError(
        f"{DRAWS} draws gave no partition with {settings.min_examples} examples on each of {settings.devices} devices: "
        f"raise data.partition.alpha ({settings.alpha}), or lower data.partition.min_examples or devices"
    )


def _by_classes(
    generator: np.random.Generator, sizes: Integers, settings: PartitionSettings
) -> npt.NDArray[np.float64]:
    """Every device gets `classes` classes, every class is shared evenly by the devices that have it."""
    if not len(sizes) <= settings.devices * settings.classes or settings.classes > len(sizes):
        raise DataError(
            f"{settings.devices} devices with {settings.classes} classes each do not fit {len(sizes)} classes: "
            "data.partition.classes must be at most their number, and all devices together must cover them"
        )
    order = generator.permutation(len(sizes))
    dealt = order[np.arange(settings.devices * settings.classes) % len(sizes)].reshape(settings.devices, -1)
    holds: npt.NDArray[np.float64] = np.zeros((len(sizes), settings.devices))
    for device, row in enumerate(generator.permutation(dealt)):
        holds[row, device] = 1.0
    holds /= holds.sum(axis=1, keepdims=True)
    return holds
