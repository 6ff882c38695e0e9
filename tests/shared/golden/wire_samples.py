"""One message of each kind, and one payload: what the golden files hold, and what the fuzz tests start from."""

import numpy as np

from shared.messages import (
    Blob,
    Capabilities,
    Chunk,
    CoordinatorState,
    Failure,
    Grant,
    InferReply,
    InferRequest,
    Message,
    Offer,
    Plan,
    Prediction,
    Presence,
    Receipt,
    Report,
    Sealed,
    Task,
    Vitals,
    Want,
)
from shared.tensors import Subnet

DIGEST = "00112233445566778899aabbccddeeff" * 2
BLOB = Blob(digest=DIGEST, size=200_000, chunk=122_368)

MESSAGES: dict[str, Message] = {
    "coordinator": CoordinatorState(online=True, epoch=3, run="demo-1"),
    "presence": Presence(
        online=True,
        epoch=2,
        capabilities=Capabilities(
            profile="rpi4",
            train=False,
            reason="83 °C",
            examples=120,
            memory_mib=512,
            encodings=("float16", "float32"),
            version="0.1",
        ),
    ),
    "vitals": Vitals(epoch=2, phase="idle", uptime_s=61.5, metrics={"temperature_c": 54.0}),
    "sealed": Sealed(number=7, body=b"\x80", signature=bytes(range(64))),
    "task": Task(
        run="demo-1",
        action="train",
        round=4,
        plan=Plan(
            model="smallcnn",
            model_options={"classes": 10, "widths": (8, 16)},
            algorithm="hermes",
            hyperparameters={
                "lr": 0.05,
                "overlap": "any",
                "nesterov": False,
                "limit": None,
                "target": {"macs": 0.25},
            },
            seed=7,
            layout=DIGEST,
            encodings=("float32", "int8"),
            evaluate_every=5,
        ),
        payload=BLOB,
        initial=Blob(digest=DIGEST[::-1], size=300_000, chunk=122_368),
        time_left_s=59.5,
    ),
    "offer": Offer(run="demo-1", round=4, blob=BLOB),
    "chunk": Chunk(digest=DIGEST, index=1, data=b"\x00\x01\x02\xff"),
    "want": Want(run="demo-1", digest=DIGEST, ranges=((0, 2), (7, 8))),
    "failure": Failure(run="demo-1", round=4, code="out_of_memory", reason="the trainer exceeded 512 MiB"),
    "report": Report(run="demo-1", round=4, examples=30, metrics={"personal_accuracy": 0.875}),
    "grant": Grant(run="demo-1", digest=DIGEST, ranges=((0, 2),)),
    "receipt": Receipt(
        run="demo-1", round=4, answers="offer", accepted=False, code="stale", reason="round 4 is closed"
    ),
    "infer": InferRequest(id="q1", shape=(1, 2), data=bytes(8)),
    "inferred": InferReply(id="q1", predictions=(Prediction(label="seven", number=7, probability=0.5),)),
}

SUBNET = Subnet(
    tensors={
        "conv.weight": np.array([[1.0, -2.0, 0.5]], np.float32),
        "bn.num_batches_tracked": np.array(12, np.int64),
    },
    held={"conv": np.array([False, True, False, False, False, False, False, False, False], bool)},
)
"""One of nine channels is held."""

DELTA = Subnet(
    tensors={
        "conv.weight": np.array(
            [[(-1) ** i * 2.0**-i for i in range(16)], [i * 0.618034 % 1 - 0.5 for i in range(15)] + [3.0]], np.float32
        ),
        "depthwise.weight": np.array([[[1.0, 0.5, 0.25]], [[-1.0, 65504.0, 0.0]]], np.float32),
        "large.weight": np.array([[1.0, 2.0**127]], np.float32),
        "bn.bias": np.array([0.1, -0.2], np.float32),
        "bn.num_batches_tracked": np.array(12, np.int64),
    },
)
"""What every encoding has a case of its own for: long rows, short rows, values too large for it, one axis, integers.
Nothing of it is worth compressing: the bytes of a zstd frame may differ between versions of the library."""
