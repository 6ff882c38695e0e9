"""From the settings to the examples that a device trains, decides and is evaluated on."""

import inspect

import numpy as np
from pydantic import ValidationError, validate_call

from edge_agent.data.dataset import Dataset, DeviceData, Examples, Integers, Normalization, Raw
from edge_agent.data.files import locate
from edge_agent.data.partition import partition
from edge_agent.data.sources import SOURCES, Source
from edge_agent.data.splits import split
from shared.config_data import DataSettings
from shared.errors import ConfigError, DataError
from shared.plugins import load_object, nearest


def load(settings: DataSettings) -> DeviceData:
    """This device's data: the source, its part of the partition, split and normalized.

    ConfigError for a source or an option that does not exist, DataError naming the file for data that cannot be used.
    """
    return device_data(read_source(settings), settings)


def read_source(settings: DataSettings) -> Dataset:
    """All that the source has. Where many emulated devices live in one process, it is read once for all of them."""
    source = _source(settings.source)
    path = None if settings.path is None else locate(settings.path, settings.partition.index)
    _check_options(settings, source)
    try:
        dataset = validate_call(source)(path, **settings.options)
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(settings, error))) from error
    if not isinstance(dataset, Dataset):
        raise DataError(f"{settings.source} returned a {type(dataset).__name__}, not an edge_agent.data.Dataset")
    return dataset


def device_data(dataset: Dataset, settings: DataSettings) -> DeviceData:
    """The part of one device, `settings.partition.index`, split and normalized. DataError where it is too small."""
    part = partition(dataset.labels, dataset.owners, settings.partition, dataset.test)
    splits = split(dataset, part, settings)
    raw = dataset.take(splits.train)
    if settings.mean is not None and settings.std is not None:
        normalization = Normalization(settings.mean, settings.std)
    else:
        normalization = dataset.normalization or Normalization.measured(raw)

    def examples(indices: Integers, raw: Raw) -> Examples:
        return Examples(normalization.apply(raw), dataset.labels[indices].astype(np.int64))

    return DeviceData(
        train=examples(splits.train, raw),
        validation=examples(splits.validation, dataset.take(splits.validation)),
        test=examples(splits.test, dataset.take(splits.test)),
        classes=dataset.classes,
        normalization=normalization,
    )


def _source(name: str) -> Source:
    if ":" in name:
        found = load_object(name)
        if not callable(found):
            raise ConfigError(f"data.source {name!r} is a {type(found).__name__}, not a callable")
        return found
    if name not in SOURCES:
        raise ConfigError(
            f"unknown data.source {name!r}{nearest(name, SOURCES)}; use one of {', '.join(SOURCES)}, or "
            "package.module:callable"
        )
    return SOURCES[name]


def _check_options(settings: DataSettings, source: Source) -> None:
    """ConfigError for an option that the source does not take, or one that it needs."""
    parameters = list(inspect.signature(source).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    takes = f"source {settings.source!r} takes {', '.join(known) or 'none'}"
    for name in settings.options:
        if name not in known:
            raise ConfigError(f"unknown data.options.{name}{nearest(name, known)}; {takes}")
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in settings.options:
            raise ConfigError(f"data.options.{parameter.name} is missing; {takes}")


def _problems(settings: DataSettings, error: ValidationError) -> list[str]:
    """One line per option of the wrong type."""
    found = {str(entry["loc"][0]): entry for entry in error.errors(include_url=False)}
    return [
        f"data.options.{name} = {settings.options.get(name)!r}: {entry['msg'].replace('Input should be', 'must be')}"
        for name, entry in found.items()
    ]
