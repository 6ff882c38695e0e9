"""Train, validation and test inside one device."""

from dataclasses import dataclass

import numpy as np

from edge_agent.data.dataset import Dataset, Integers
from shared.config_data import DataSettings
from shared.errors import DataError


@dataclass(frozen=True)
class Splits:
    """Indices into the data set, ascending; no example is in two of them, none is empty."""

    train: Integers
    validation: Integers
    test: Integers


def split(dataset: Dataset, part: Integers, settings: DataSettings) -> Splits:
    """Divide the examples `part` (ascending indices) of one device.

    Independent examples are drawn so that every split has the classes in the same proportions. Examples in order of
    time are cut in time, per owner: training first, test last, and what overlaps a cut belongs to neither side.
    The source's own test examples are the test split where the part has any; else the share `settings.test` is.
    `max_per_class` thins out the training split only. DataError when a split is empty.
    """
    generator = np.random.Generator(np.random.PCG64([settings.seed, settings.partition.index]))
    own = np.zeros(len(part), bool) if dataset.test is None else dataset.test[part]
    test, rest = part[own], part[~own]
    if not len(test):
        test, rest = _cut(dataset, rest, settings.test, generator)
    # The validation share is of all examples where the test split came out of them too.
    share = settings.validation if own.any() else settings.validation / (1 - settings.test)
    validation, train = _cut(dataset, rest, share, generator)
    train = _thin(dataset, train, settings.max_per_class)
    for name, indices in (("training", train), ("validation", validation), ("test", test)):
        if not len(indices):
            raise DataError(
                f"{len(part)} examples leave none for {name}: give the device more data, or change data.validation "
                f"({settings.validation}) and data.test ({settings.test})"
            )
    return Splits(np.sort(train), np.sort(validation), np.sort(test))


def _cut(
    dataset: Dataset, indices: Integers, share: float, generator: np.random.Generator
) -> tuple[Integers, Integers]:
    """(held out, rest): `share` of the examples, at least one. The rest is in random order, or in order of time."""
    if dataset.overlap is None:
        ordered = _stratified(dataset.labels[indices], indices, generator)
        count = max(1, round(share * len(indices)))
        return ordered[:count], ordered[count:]
    owners = np.zeros(len(dataset), np.int64) if dataset.owners is None else dataset.owners
    held_out, rest = [indices[:0]], [indices[:0]]
    for owner in np.unique(owners[indices]):
        series = indices[owners[indices] == owner]
        late = series[-max(1, round(share * len(series))) :]
        held_out.append(late)
        rest.append(series[series < late[0] - dataset.overlap])
    return np.concatenate(held_out), np.concatenate(rest)


def _stratified(labels: Integers, indices: Integers, generator: np.random.Generator) -> Integers:
    """The examples in an order of which every stretch has the classes in about the same proportions."""
    order = generator.permutation(len(indices))
    position = np.empty(len(indices))
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        position[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return indices[order[np.argsort(position[order], kind="stable")]]


def _thin(dataset: Dataset, train: Integers, limit: int | None) -> Integers:
    """The first `limit` examples of each class, in the order given."""
    if limit is None:
        return train
    labels = dataset.labels[train]
    chosen = [train[labels == label][:limit] for label in np.unique(labels)]
    return np.concatenate([train[:0], *chosen])
