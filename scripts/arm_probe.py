"""What scripts/arm-check runs: `prepare FOLDER` on this machine, then `wire|infer|train FOLDER` under emulation.

Each stage does what an agent does, with the agent's own code, and compares with what this machine computed.
"""

import sys
from pathlib import Path

import numpy as np

TOLERANCE = 1e-4
"""Of logits and weights: other instructions add in another order."""


def prepare(folder: Path) -> None:
    import torch

    from edge_agent.quantization import quantize
    from shared.models import build_model, example_input
    from shared.onnx_runtime import open_session, optimize
    from shared.onnx_torch import to_onnx

    model = build_model("digitscnn", {}, seed=0).eval()
    inputs = torch.randn(16, *example_input("digitscnn", {}).shape[1:], generator=torch.Generator().manual_seed(0))
    exported = to_onnx(model, inputs, optimize=False)
    float32 = optimize(exported.SerializeToString())
    (folder / "float32.onnx").write_bytes(float32)
    (folder / "int8.onnx").write_bytes(quantize(float32, inputs.numpy(), "armv8.0"))
    np.save(folder / "inputs.npy", inputs.numpy())
    np.save(folder / "logits.npy", open_session(float32).run(None, {"input": inputs.numpy()})[0])
    np.savez(folder / "trained.npz", **_train())


def wire(folder: Path) -> None:
    """Messages, payloads, signatures: what every agent needs, also one that only infers."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    import edge_agent.agent  # noqa: F401
    from shared.codec import decode_payload, decode_uplink, encode_message, encode_payload
    from shared.messages import Blob, Offer
    from shared.tensors import Subnet

    offer = Offer(run="check", round=1, blob=Blob(digest="0" * 64, size=10, chunk=512))
    assert decode_uplink(encode_message(offer)) == offer
    key = Ed25519PrivateKey.generate()
    key.public_key().verify(key.sign(b"task"), b"task")
    sent = {"weight": np.arange(12, dtype=np.float32).reshape(3, 4)}
    found = decode_payload(encode_payload(Subnet(sent), run="check", round=1), limit=1 << 20).subnet.tensors
    assert np.array_equal(found["weight"], sent["weight"])


def infer(folder: Path) -> None:
    """float32 as on this machine; int8 with the same classes."""
    from shared.onnx_runtime import open_session

    inputs, logits = np.load(folder / "inputs.npy"), np.load(folder / "logits.npy")
    found = {
        name: open_session(folder / f"{name}.onnx").run(None, {"input": inputs})[0] for name in ("float32", "int8")
    }
    worst = float(np.abs(found["float32"] - logits).max())
    same = float((found["int8"].argmax(1) == logits.argmax(1)).mean())
    print(f"float32 differs by {worst:.1e}, int8 has the same class in {same:.0%}", end=" ")
    assert worst < TOLERANCE
    assert same >= 0.9


def train(folder: Path) -> None:
    """Two epochs of the agents' own SGD."""
    import torch

    found, wanted = _train(), np.load(folder / "trained.npz")
    worst = max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted)
    print(f"torch {torch.__version__}, weights differ by {worst:.1e}", end=" ")
    assert worst < TOLERANCE


def _train() -> dict[str, np.ndarray]:
    import torch

    from shared.model_state import state_tensors
    from shared.models import build_model, example_input
    from shared.training import Split, sgd

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    model = build_model("digitscnn", {}, seed=0)
    inputs = torch.randn(64, *example_input("digitscnn", {}).shape[1:], generator=generator)
    labels = torch.randint(0, 10, (64,), generator=generator)
    sgd(
        model,
        Split(inputs, labels),
        epochs=2,
        lr=0.05,
        batch_size=16,
        generator=generator,
        check_time=lambda: None,
    )
    return state_tensors(model)


if __name__ == "__main__":
    stage, place = sys.argv[1:]
    {"prepare": prepare, "wire": wire, "infer": infer, "train": train}[stage](Path(place))
    print("ok")
