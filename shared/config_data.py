"""Settings of what a device learns from."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared.config_base import FilePath, Settings
from shared.messages import Hyperparameter


class PartitionSettings(Settings):
    """How a data set is divided over emulated devices. Real devices have their own data: kind `whole`."""

    kind: Literal["whole", "iid", "dirichlet", "classes", "natural"] = Field(
        "whole",
        description="all of it, evenly, by label skew (`alpha`), `classes` classes each, or by its natural owners",
    )
    devices: int = Field(1, ge=1, description="parts")
    index: int = Field(0, ge=0, description="which part is ours")
    alpha: float = Field(0.3, gt=0, description="concentration of the Dirichlet distribution: small is skewed")
    classes: int = Field(2, ge=1, description="classes per device, with kind `classes`")
    min_examples: int = Field(10, ge=1, description="a part with fewer is drawn again")
    seed: int = Field(0, ge=0, description="seed of the partition: the same on every device")

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.index >= self.devices:
            raise ValueError(f"index {self.index} is not one of {self.devices} devices (0 to {self.devices - 1})")
        return self


class DataSettings(Settings):
    """What a device learns from. It never leaves the device."""

    source: str = Field(
        "digits",
        description="digits, mnist, fashion-mnist, cifar10, npz, images, csv, or package.module:callable",
    )
    path: FilePath | None = Field(
        None,
        description="file or folder of the source; a relative one is also looked for below TALARIA_DATA; {index} or "
        "{index:02d} in it stands for data.partition.index",
        examples=["mnist-dirichlet-20/client-{index:02d}.npz"],
    )
    options: dict[str, Hyperparameter] = Field(default_factory=dict, description="keyword arguments of the source")
    mean: tuple[float, ...] | None = Field(
        None,
        description="subtracted from raw inputs, one value or one per channel; without it, as docs/data.md says",
        examples=[[127.5]],
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="what they are then divided by, one value or one per channel", examples=[[127.5]]
    )
    partition: PartitionSettings = PartitionSettings()
    validation: float = Field(0.15, gt=0, lt=1, description="share of the examples that every decision is taken on")
    test: float = Field(0.2, gt=0, lt=1, description="share held out for evaluation, unless the source has its own")
    max_per_class: int | None = Field(
        None,
        ge=1,
        description="at most so many training examples of each class: emulates a device that has seen little",
        examples=[20],
    )
    seed: int = Field(0, ge=0, description="seed of the split")

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing to train on")
        if (self.mean is None) != (self.std is None) or (self.mean and self.std and len(self.mean) != len(self.std)):
            raise ValueError("mean and std belong together: give both, of the same length, or neither")
        return self
