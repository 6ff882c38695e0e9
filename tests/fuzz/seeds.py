"""What fuzzing starts from: golden messages and payloads, a small template, scripts of events, and what it found."""

import random
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from script import WIDTH
from targets import DECODERS

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "shared" / "golden"
SCRIPTS = 32


def corpus(target: str) -> Path:
    """Inputs that fuzzing found worth keeping, one per line in hexadecimal: those that reach what no other reaches,
    and every one that ever broke something."""
    return HERE / "corpus" / f"{target}.hex"


def seeds(target: str) -> list[bytes]:
    """The inputs of this target that are known without a fuzzer."""
    golden = {path.stem: bytes.fromhex(path.read_text()) for path in sorted(GOLDEN.glob("*.hex"))}
    kept = corpus(target)
    found = [bytes.fromhex(line) for line in kept.read_text().split()] if kept.exists() else []
    sent = [data for name, data in golden.items() if not name.startswith("payload")]
    match target:
        case "messages":
            found += [bytes([number]) + data for number in range(len(DECODERS)) for data in sent]
        case "payloads":
            for data in (data for name, data in golden.items() if name.startswith("payload")):
                end = 8 + int.from_bytes(data[4:8], "little")
                split = (end - 8).to_bytes(2, "little") + data[8:end] + data[end:]
                found += [b"\0" + data, b"\x80" + split, b"\xff" + split]
        case "template":
            found += [b"\0" + _template(), b"\1" + _template(), b"\0"]
        case "infer":
            found += [golden["infer"], b"\2\3\4" + np.ones(12, "<f4").tobytes(), b"\2\1\4" + b"\xff" * 16]
        case _:
            found += [_rounds(), _mishaps()] if target in ("coordinator", "buffered") else []
            draw = random.Random(target)
            found += [draw.randbytes(WIDTH * draw.choice((3, 10, 30))) for _ in range(SCRIPTS)]
    return found


def _rounds() -> bytes:
    """For the coordinator: ordinary rounds to the end, in which every device says everything twice."""
    settings = bytes([1, 2, 0, 0, 2, 0])  # a quorum of two, three rounds, and what its devices do comes to an end
    obey, offer = 6, 10
    said = [bytes([kind, device, 0, 0, 1, 0]) for device in range(3) for kind in (obey, offer)]
    return settings + b"".join(said * 4)


def _mishaps() -> bytes:
    """For the coordinator: of every update a chunk is wrong, then its grants are lost, then it comes to its end."""
    offer, grants, chunk, obey = 10, 12, 14, 6
    said = [
        bytes([kind, device, 0, argument, 1, 0])
        for kind, argument in ((offer, 66), (chunk, 66), (obey, 0), (offer, 66), (grants, 0))
        for device in range(3)
    ]
    return bytes([1, 2, 0, 0, 2, 0]) + b"".join(said)


def _template() -> bytes:
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "fc.weight")
    bias = numpy_helper.from_array(np.ones(4, np.float32), "fc.bias")
    gemm = helper.make_node("Gemm", ["input", "fc.weight", "fc.bias"], ["logits"], transB=1)
    taken = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph([gemm], "g", [taken], [given], [weight, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data
