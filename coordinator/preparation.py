"""What a run needs of its model: the definition and the first tensors, then the ONNX template. Made once per run.

Building, tracing and exporting take several times the memory that rounds take, so a process of its own does it:

    python -m coordinator.preparation RUN_DIR
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from coordinator.checkpoints import RunDirectory
from shared import errors
from shared.children import dying_with_us
from shared.errors import TalariaError
from shared.files import atomic_write

DEFINED = b"defined\n"


class Preparation(Protocol):
    """How a coordinator has its run prepared."""

    async def define(self, directory: RunDirectory) -> None:
        """Return when definition and first tensors are in the folder; ConfigError or ModelError if they cannot."""

    async def template(self) -> None:
        """Return when the template is in the folder, or there will be none. Called once."""

    async def stop(self) -> None:
        """Leave nothing running."""


class InChild:
    """In a child process; `warn` is told why there is no template."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._process: asyncio.subprocess.Process | None = None

    async def define(self, directory: RunDirectory) -> None:
        if directory.definition.exists() and directory.template.exists():
            return
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "coordinator.preparation",
            str(directory.path),
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=dying_with_us(),  # a second coordinator starts its own, in the same folder
        )
        assert self._process.stdout is not None
        answer = await self._process.stdout.readline()
        if answer != DEFINED:
            await self._process.wait()
            raise _error(answer)

    async def template(self) -> None:
        if self._process is not None:
            assert self._process.stdout is not None
            said = await self._process.stdout.read()
            if await self._process.wait() != 0:
                self._warn(str(_error(said)))

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class InProcess:
    """In a thread: for simulations, whose process is large anyway, and tests."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._directory = RunDirectory(Path())

    async def define(self, directory: RunDirectory) -> None:
        self._directory = directory
        await asyncio.to_thread(make_definition, directory)

    async def template(self) -> None:
        try:
            await asyncio.to_thread(make_template, self._directory)
        except (ImportError, TalariaError) as error:
            self._warn(str(error))

    async def stop(self) -> None:
        """A thread cannot be stopped, but nobody waits for it."""


def make_definition(directory: RunDirectory) -> None:
    """Write definition and first tensors, unless they are there. ConfigError or ModelError where the settings make no
    run."""
    from coordinator.definition import define
    from coordinator.downloads import write_tensors
    from shared.tensors import Subnet

    if not directory.definition.exists():
        record = directory.record()
        definition, initial, shared = define(record.config)
        if record.config.model.initial is not None:  # the seed's are nothing that devices would have to be sent
            write_tensors(directory.initial, Subnet(initial), record.run, 0)
        write_tensors(directory.global_payload(1), Subnet(shared), record.run, 1)
        atomic_write(directory.definition, definition.dump())


def make_template(directory: RunDirectory) -> None:
    """Write the template, unless it is there. ModelError where the model has no ONNX form, ImportError without onnx."""
    from coordinator.definition import model_of
    from coordinator.template import dense_template
    from shared.models import example_input
    from shared.onnx_file import ModelCard

    if not directory.template.exists():
        record = directory.record()
        model = record.config.model
        card = ModelCard(run=record.run, model=model.name, model_options=model.options)
        example = example_input(model.name, model.options)
        atomic_write(directory.template, dense_template(model_of(record.config).eval(), example, card.properties()))


def _error(answer: bytes) -> TalariaError:
    """What the child said when it failed, as the error that it was."""
    try:
        fields = json.loads(answer)
        kind = getattr(errors, fields["error"], TalariaError)
        return kind(fields["text"]) if issubclass(kind, TalariaError) else TalariaError(fields["text"])
    except (ValueError, KeyError):
        return TalariaError("the preparation of the run was killed; is there enough memory for the model?")


def main(path: Path) -> int:
    """Exit status 1, and the error as JSON on stdout, where a step fails."""
    directory = RunDirectory(path)
    try:
        make_definition(directory)
        sys.stdout.buffer.write(DEFINED)
        sys.stdout.buffer.flush()
        os.nice(5)  # rounds come first, but on a busy machine this has to end, too
        make_template(directory)
    except (ImportError, TalariaError) as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
