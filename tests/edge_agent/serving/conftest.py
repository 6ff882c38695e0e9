"""A personal model on its way into service: what the trainer and the coordinator leave on a device's disk."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coordinator.template import dense_template
from edge_agent.export import export_personal
from shared.channel_trace import channel_layout
from shared.codec import encode_payload
from shared.model_state import state_tensors
from shared.models import build_model, example_input
from shared.onnx_file import ModelCard
from shared.profiles import Profile, load_profile
from shared.pruning import shrink
from shared.tensors import Subnet

CARD = ModelCard(
    run="run",
    round=3,
    layout="f" * 64,
    model="digitscnn",
    labels=tuple(f"digit {number}" for number in range(10)),
    mean=(4.0,),
    std=(2.0,),
)


@dataclass(frozen=True)
class Personal:
    """Files of one personal model, and where it goes."""

    template: Path
    personal: Path
    reference: Path
    models: Path
    profile: Profile
    network: nn.Module

    def export(self, round_: int = 3, *, reference: Path | None = None) -> dict[str, float]:
        metadata = CARD.model_copy(update={"round": round_}).properties()
        return export_personal(
            self.template, self.personal, reference or self.reference, self.models, self.profile, metadata
        )


@pytest.fixture(scope="session")
def dense() -> nn.Module:
    return build_model("digitscnn", {}, seed=0).eval()


@pytest.fixture(scope="session")
def template(dense: nn.Module) -> bytes:
    return dense_template(dense, example_input("digitscnn", {}), {"run": "run", "model": "digitscnn"})


@pytest.fixture
def make_personal(tmp_path: Path, dense: nn.Module, template: bytes) -> Callable[[str], Personal]:
    """A device's files: half of the channels of every group, and the trainer's logits for ten inputs."""

    def make(device: str = "device") -> Personal:
        folder = tmp_path / device
        folder.mkdir()
        layout = channel_layout(dense, example_input("digitscnn", {}))
        held = {group: np.arange(units) % 2 == 0 for group, units in layout.groups.items()}
        network = shrink(dense, layout, held).eval()
        inputs = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            logits = network(inputs).numpy()
        (folder / "template").write_bytes(template)
        (folder / "personal.payload").write_bytes(
            encode_payload(Subnet(state_tensors(network), held), run="run", round=3)
        )
        np.savez(folder / "reference.npz", inputs=inputs.numpy(), labels=logits.argmax(1), logits=logits)
        return Personal(
            folder / "template",
            folder / "personal.payload",
            folder / "reference.npz",
            folder / "models",
            load_profile("container"),
            network,
        )

    return make


@pytest.fixture
def personal(make_personal: Callable[[str], Personal]) -> Personal:
    return make_personal("device")
