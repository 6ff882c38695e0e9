"""What a ResNet-18 weighs on the wire in every encoding, what of it is lost, and how fast it is encoded and decoded.

float16 and int8 carry the tensors of a network after a few steps of training, topk what these steps changed. Lost is
the L2 norm of the difference to what was encoded, over that of what was encoded. Speed is that of one core in bytes of
float32, as a ratio to a copy of the same tensors in memory made right after; the median of the CPU times.

    python -m benchmarks.encodings
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.common import RESULTS, report
from shared.codec import decode_payload, encode_payload
from shared.encoding import Encoding
from shared.model_state import state_tensors
from shared.models import build_model
from shared.tensors import Subnet, Tensors

REPEATS = 7
STEPS = 5


def trained() -> tuple[Tensors, Tensors]:
    """The tensors of a network after a few steps on noise, and what these steps changed."""
    torch.manual_seed(0)
    model = build_model("resnet18", {}, seed=0)
    before = {name: array.copy() for name, array in state_tensors(model).items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(torch.randn(16, 3, 32, 32)), torch.randint(10, (16,)))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = state_tensors(model)
    return after, {name: array - before[name] if array.dtype.kind == "f" else array for name, array in after.items()}


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def row(encoding: Encoding, tensors: Tensors) -> dict[str, object]:
    size = sum(array.nbytes for array in tensors.values())
    subnet, delta = Subnet(tensors), encoding is Encoding.TOPK
    data = encode_payload(subnet, encoding=encoding, delta=delta, run="benchmark", round=1)
    read = decode_payload(data, limit=size + len(data)).subnet.tensors
    floats = [name for name, array in tensors.items() if array.dtype.kind == "f"]
    norms = [
        math.sqrt(sum(float(np.vdot(array, array)) for array in arrays))
        for arrays in ([tensors[name] - read[name] for name in floats], [tensors[name] for name in floats])
    ]
    encoding_s, decoding_s, copying_s = (
        statistics.median(times)
        for times in zip(
            *(
                (
                    seconds(lambda: encode_payload(subnet, encoding=encoding, delta=delta, run="benchmark", round=1)),
                    seconds(lambda: decode_payload(data, limit=size + len(data))),
                    seconds(lambda: [array.copy() for array in tensors.values()]),
                )
                for _ in range(REPEATS)
            ),
            strict=True,
        )
    )
    return {
        "encoding": encoding.value,
        "MB": len(data) / 1e6,
        "times smaller": size / len(data),
        "lost": norms[0] / norms[1],
        "copy/encode": copying_s / encoding_s,
        "copy/decode": copying_s / decoding_s,
        "encode MB/s": size / 1e6 / encoding_s,
        "decode MB/s": size / 1e6 / decoding_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values, differences = trained()
    rows = [row(encoding, differences if encoding is Encoding.TOPK else values) for encoding in Encoding]
    report("encodings", rows, directory=arguments.results, tensors=len(values))


if __name__ == "__main__":
    main()
