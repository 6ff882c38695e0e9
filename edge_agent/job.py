"""One task as the supervisor hands it to the trainer, and what comes back: files and two records, no torch.

The trainer writes into `Job.out`, a fresh folder:

| file             | when         | holds                                                                             |
|------------------|--------------|-----------------------------------------------------------------------------------|
| outcome.json     | always       | Outcome                                                                           |
| memory.payload   | it succeeded | what the device remembers; tensors named `group/tensor`                           |
| update.payload   | train        | what is offered to the coordinator                                                |
| personal.payload | personalize  | the device's own model, cut down to the channels it holds, and which those are    |
| reference.npz    | personalize  | `inputs` (float32) and `labels` (int64) of the validation split, at most 512, and |
|                  |              | the `logits` (float32) that the personal model answers them with                  |
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from shared.config_data import DataSettings
from shared.messages import Identifier, Metrics, Task, Text
from shared.profiles import Profile
from shared.topics import NAME

OUTCOME = "outcome.json"
MEMORY = "memory.payload"
UPDATE = "update.payload"
PERSONAL = "personal.payload"
REFERENCE = "reference.npz"

SUCCEEDED = "succeeded"


class Job(BaseModel):
    """Everything the trainer needs for one task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    device: str = Field(pattern=f"^{NAME}$")
    payload: Path = Field(description="the download that task.payload announced, verified")
    initial: Path | None = Field(None, description="the download that task.initial announced, verified, if it did")
    template: Path | None = Field(None, description="the download that task.template announced, verified, if it did")
    memory: Path | None = Field(description="memory.payload of the last task of this run; None: nothing remembered")
    out: Path = Field(description="existing, empty folder for the results")
    data: DataSettings
    profile: Profile
    threads: int = Field(ge=1, description="compute threads")
    trust: tuple[str, ...] = Field((), description="package.module:name that a plan may ask to import")
    deadline_s: float = Field(gt=0, description="seconds from the start of the work until it is of no more use")
    reserve_s: float = Field(0.0, ge=0, description="of these, what an update is expected to take on its way")


class Outcome(BaseModel):
    """How a job ended.

    code       `succeeded`, or the code of the error (shared.errors) that ended it
    reason     the error's text: the value and the remedy
    examples   training examples of this device
    metrics    what is reported to the coordinator. On the test split, before this round's training and in the rounds
               that the plan wants evaluated: `accuracy` and `loss` of the device's own model, `accuracy_global` of one
               with nothing of this device in it, `test_examples`. After it: `parameters`, `macs` and, where the
               algorithm prunes, `channels`, beside those of the dense model (`..._dense`), and where the update's
               encoding is lossy `encoding_loss`, the norm of what it lost over that of the update; where time ran
               short `work_done`, the share of the steps that the update has. After
               personalization `latency_ms_eager`, of one example
    encoding   of the update (shared.encoding)
    labels     what the classes are called, and
    mean, std  the normalization of the inputs, which belong beside an exported model; after personalization
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    code: Identifier = SUCCEEDED
    reason: Text = ""
    examples: int = 0
    metrics: Metrics = {}
    encoding: Identifier = "float32"
    labels: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def succeeded(self) -> bool:
        return self.code == SUCCEEDED
