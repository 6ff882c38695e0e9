"""Settings of the rounds: when they open and close, what is taken, and what becomes of it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from shared.config_base import Settings


class RoundSettings(Settings):
    """How rounds are opened and closed."""

    count: int = Field(10, ge=1, le=1_000_000, description="rounds to run")
    cohort: int | None = Field(
        None, ge=1, description="devices asked per round; without it, every device that is ready", examples=[10]
    )
    quorum: int = Field(2, ge=1, description="updates without which a round is not closed but asked again")
    min_devices: int = Field(2, ge=1, description="devices that must be ready before a round is opened")
    deadline_s: float = Field(600.0, gt=0, description="seconds after which a round closes with what has arrived")
    personalize_deadline_s: float = Field(600.0, gt=0, description="the same for the personalization at the end")
    evaluate_every: int = Field(
        1, ge=1, description="rounds from one evaluation on the test splits to the next; the first and the end have one"
    )
    mode: Literal["synchronous", "buffered"] = Field(
        "synchronous",
        description="`buffered`: devices train without waiting for each other, each on the newest global tensors, and "
        "every `enough` updates make the next ones (FedBuff)",
    )
    enough: int | None = Field(
        None,
        ge=1,
        description="updates with which a round is closed at once, without waiting for slower devices; without it, all "
        "that were asked. In `buffered` mode the size of the buffer, without it `quorum`",
        examples=[8],
    )
    max_staleness: int = Field(
        10,
        ge=0,
        le=1000,
        description="in `buffered` mode, how many rounds may have closed since the one that an update started from",
    )

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.cohort is not None and self.quorum > self.cohort:
            raise ValueError(f"quorum {self.quorum} can never be met by a cohort of {self.cohort}: raise cohort")
        if self.cohort is None and self.quorum > self.min_devices:
            raise ValueError(
                f"quorum {self.quorum} can never be met when a round may open with {self.min_devices} devices: "
                "raise min_devices"
            )
        if self.cohort is not None and self.min_devices < self.quorum:
            raise ValueError(f"min_devices {self.min_devices} is less than quorum {self.quorum}: raise it")
        if self.enough is not None and self.enough < self.quorum:
            raise ValueError(f"enough {self.enough} is less than quorum {self.quorum}: raise it, or lower quorum")
        if self.enough is not None and self.cohort is not None and self.enough > self.cohort:
            raise ValueError(f"enough {self.enough} can never be met by a cohort of {self.cohort}: raise cohort")
        if self.enough is not None and self.mode == "buffered" and self.enough > self.min_devices:
            raise ValueError(
                f"enough {self.enough} may never be met by {self.min_devices} devices, each of which answers a round's "
                "tensors once: raise min_devices"
            )
        return self


class AggregationSettings(Settings):
    """What becomes of a round's updates."""

    rule: Literal["mean", "trimmed-mean", "median", "clipped-mean"] = Field(
        "mean",
        description="per coordinate, over the updates that hold it: the weighted mean, the mean without the extremes, "
        "the median; or the weighted mean of differences whose norm is clipped",
    )
    trim: float = Field(
        0.2, gt=0, lt=0.5, description="share of the updates that `trimmed-mean` leaves out at either end"
    )
    clip: float | None = Field(
        None,
        gt=0,
        description="norm to which `clipped-mean` clips; without it, the median of the round's norms",
        examples=[1.0],
    )


class AdmissionSettings(Settings):
    """What is refused, and who is no longer asked."""

    max_norm: float | None = Field(
        None,
        gt=1,
        description="an update that moved further than so many times the median of the updates before is refused",
        examples=[5.0],
    )
    max_weight: float | None = Field(
        None,
        gt=1,
        description="an update that weighs more than so many times the median of the updates before is refused; how "
        "many examples a device has is only what it says",
        examples=[20.0],
    )
    quarantine_after: int | None = Field(
        5,
        ge=1,
        description="refused updates and failures in a row after which a device is not asked until it is released",
    )
