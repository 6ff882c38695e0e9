"""The global tensors of a run and what becomes of them: every accepted update counts once, whatever happens.

Updates are folded when the round closes, in the order of their devices' names: float addition is not associative, and
neither the order of arrival nor a restart may show in the result, not even in its last bits.

Blocking: reads, writes, hashes and sums. Memory O(model): one accumulator at the end of a round.
"""

from pathlib import Path
from typing import Any

from coordinator.admission import Admission, kept
from coordinator.checkpoints import RunDirectory
from coordinator.definition import Definition
from shared.aggregation import Update
from shared.algorithms import algorithm, hyperparameters
from shared.codec import ALIGNMENT, MAX_HEADER, open_payload, write_payload
from shared.errors import MalformedPayload, RefusedUpdate, StateError
from shared.files import sync_directory, sync_file
from shared.messages import PayloadHeader
from shared.pruning import take
from shared.tensors import Subnet


def write_tensors(path: Path, subnet: Subnet, run: str, number: int) -> None:
    """Put a payload for the devices of round `number` at `path`, durably, whole or not at all."""
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        write_payload(file, subnet, run=run, round=number)
    sync_file(temporary)
    temporary.replace(path)
    sync_directory(path.parent)


class Ledger:
    """Works in the run's folder; one call at a time."""

    def __init__(self, directory: RunDirectory, number: int) -> None:
        """`number`: the round that is open or comes next; its global tensors must be there."""
        record = directory.record()
        definition = Definition.load(directory.definition.read_bytes())
        self._directory = directory
        self._run = record.run
        self._layout = definition.layout
        self.plan = definition.plan
        self._algorithm = algorithm(record.config.algorithm.name)
        self._settings = hyperparameters(self._algorithm, record.config.algorithm.hyperparameters)
        source = directory.global_payload(number)
        with open_payload(source, limit=source.stat().st_size) as payload:
            tensors = payload.subnet.tensors
            self.limit = sum(array.nbytes + ALIGNMENT for array in tensors.values()) + MAX_HEADER
            """Bytes of the largest update that can be acceptable."""
            self._admission = Admission.of(self._run, tensors, self._layout, self._settings.weighting, self.limit)

    def accepted(self, number: int) -> dict[str, dict[str, Any]]:
        """Journal entries of the updates of round `number` that were accepted so far, by device.

        StateError names one that is damaged by now.
        """
        entries = {}
        for device, path in self._directory.accepted(number).items():
            try:
                with self._admission.examine(path, number) as (update, header):
                    entries[device] = self._entry(device, path, header, kept(update.subnet.held))
            except RefusedUpdate as error:
                raise _damaged(path, error) from error
        return entries

    def download(self, number: int) -> Path:
        """What the cohort of round `number` is sent."""
        partial = self._directory.download(number)
        return partial if partial.exists() else self._directory.global_payload(number)

    def take(self, device: str, number: int, path: Path, examples: int) -> dict[str, Any]:
        """Admit a received update; its journal entry. It counts once `RunDirectory.confirm` has returned.

        RefusedUpdate says why it is not taken: then nothing of it stays.
        """
        try:
            with self._admission.examine(path, number, examples) as (update, header):
                path = self._directory.accept(number, device, path)
                return self._entry(device, path, header, kept(update.subnet.held))
        except RefusedUpdate:
            path.unlink()
            raise

    def close(self, number: int) -> None:
        """Make the accepted updates the tensors that round `number + 1` starts from, on disk.

        StateError names an update that is damaged by now.
        """
        accumulator = self._algorithm.aggregate(self._layout, self._settings)
        for path in self._directory.accepted(number).values():
            try:
                with open_payload(path, limit=self.limit) as payload:
                    accumulator.add(Update(payload.subnet, payload.header.weight))
            except MalformedPayload as error:
                raise _damaged(path, error) from error
        with open_payload(self._directory.global_payload(number), limit=self.limit) as payload:
            aggregate = accumulator.result(payload.subnet.tensors)
            write_tensors(self._directory.global_payload(number + 1), Subnet(aggregate.tensors), self._run, number + 1)
        valid = aggregate.valid
        if valid is not None and self._layout is not None and kept(valid) < 1:
            partial = Subnet(take(aggregate.tensors, self._layout, valid), valid)
            write_tensors(self._directory.download(number + 1), partial, self._run, number + 1)

    @staticmethod
    def _entry(device: str, path: Path, header: PayloadHeader, share: float) -> dict[str, Any]:
        return {
            "device": device,
            "examples": header.examples,
            "weight": header.weight,
            "bytes": path.stat().st_size,
            "kept": share,
            "metrics": header.metrics,
        }


def _damaged(path: Path, error: Exception) -> StateError:
    return StateError(f"{path} was accepted and is damaged now ({error}); remove it to go on")
