"""Whatever devices say, no variance and no counter of the new model is one that no model has."""

from collections.abc import Callable

import numpy as np
import pytest
from fleet import tensors_of

from coordinator.checkpoints import Checkpoint, RunDirectory, RunRecord
from coordinator.events import Snapshot
from coordinator.ledger import Ledger
from coordinator.possible import LARGEST_COUNT, possible
from shared.codec import encode_payload
from shared.config_rounds import AggregationSettings
from shared.encoding import Encoding
from shared.tensors import Subnet, Tensors

Begin = Callable[..., RunDirectory]


def test_the_nearest_that_a_model_can_be() -> None:
    told = {
        "bn.running_var": np.array([-1e6, -1e-9, 0.5], np.float32),
        "bn.running_mean": np.array([-2.0], np.float32),
        "bn.num_batches_tracked": np.array(2**63 - 1),
        "small.num_batches_tracked": np.array(-3, np.int32),
    }
    found = possible(Subnet(told)).tensors
    assert found["bn.running_var"].tolist() == [0, 0, 0.5]
    assert found["bn.running_mean"].tolist() == [-2]
    assert found["bn.num_batches_tracked"] == LARGEST_COUNT
    assert found["small.num_batches_tracked"] == 0
    assert {name: array.dtype for name, array in found.items()} == {name: array.dtype for name, array in told.items()}


def change(tensors: Tensors, variance: float, count: int) -> bytes:
    """A difference: BatchNorm's variances moved by so much, its counters said to be so many."""
    moved = {name: np.full_like(array, variance if "running_var" in name else 0.5) for name, array in tensors.items()}
    moved |= {name: np.full_like(array, count) for name, array in tensors.items() if array.dtype.kind == "i"}
    return encode_payload(
        Subnet(moved), run="run", round=1, examples=10, weight=10.0, encoding=Encoding.FLOAT16, delta=True
    )


@pytest.mark.parametrize("rule", ["mean", "trimmed-mean", "median", "clipped-mean"])
def test_differences_that_end_below_0_are_taken_and_count_as_0(begin: Begin, rule: str) -> None:
    """The variances start at 1: two go down to 0.5, rounding takes one a little below 0, and one device lies."""
    directory = begin()
    config = directory.record().config
    chosen = AggregationSettings.model_validate(
        {"rule": rule, "trim": 0.25} if rule == "trimmed-mean" else {"rule": rule}
    )
    directory.create(RunRecord("run", config.model_copy(update={"aggregation": chosen})))
    directory.save(Checkpoint(Snapshot()))
    start = tensors_of(directory.global_payload(1))
    ledger = Ledger(directory, 1)
    said = {"a": (-0.5, 7), "b": (-0.5, 7), "c": (-1.0000001, 7), "liar": (-1e6, 2**63 - 1)}
    for device, (variance, count) in said.items():
        path = directory.incoming(1) / device
        path.write_bytes(change(start, variance, count))
        ledger.take(device, 1, path, 0)
    ledger.close(1)
    after = tensors_of(directory.global_payload(2))
    variances = [array for name, array in after.items() if "running_var" in name]
    assert variances
    assert all(array.min() >= 0 and array.max() <= 0.5 for array in variances)
    if rule == "mean":
        np.testing.assert_allclose(np.concatenate(variances), 0.25, rtol=1e-5)
    assert {int(array) for array in after.values() if array.dtype.kind == "i"} <= {7, LARGEST_COUNT}
