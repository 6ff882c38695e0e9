"""The data of an emulated fleet, each source read once however many devices share it."""

from collections import Counter
from collections.abc import Iterator, Mapping

from edge_agent.data.dataset import DeviceData
from edge_agent.data.files import locate
from edge_agent.data.load import device_data, read_source
from shared.config_data import DataSettings, PartitionSettings


def fleet_data(devices: Mapping[str, DataSettings]) -> Iterator[tuple[str, DeviceData]]:
    """Every device with its examples, in order. Of the sources one is in memory at a time, the last one read.

    ConfigError and DataError as edge_agent.data.load.
    """
    read, dataset = None, None
    for device, settings in devices.items():
        path = settings.path and locate(settings.path, settings.partition.index)
        source = settings.model_copy(update={"path": path, "partition": PartitionSettings()})
        if dataset is None or source != read:
            read, dataset = source, read_source(settings)
        yield device, device_data(dataset, settings)


def class_counts(data: DeviceData) -> list[int]:
    """Training examples of each class, in the order of the classes."""
    counts = Counter(data.train.labels.tolist())
    return [counts[index] for index in range(len(data.classes))]
