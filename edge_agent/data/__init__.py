"""A device's own data: sources, partition over emulated devices, splits. Numpy only; it never leaves the device."""

from edge_agent.data.dataset import Dataset, DeviceData, Examples, Normalization
from edge_agent.data.load import device_data, load, read_source

__all__ = ["Dataset", "DeviceData", "Examples", "Normalization", "device_data", "load", "read_source"]
