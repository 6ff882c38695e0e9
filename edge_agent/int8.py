"""Does int8 take the float32 model's place? Asked in a process of its own, of a version that was accepted in float32.

Quantization is not exact, so parity says nothing about it: it has to agree with the float32 model on the device's own
validation split, to be as accurate, and to pay off on this very device.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.child import answer, ask
from edge_agent.inference import Network, latencies
from edge_agent.slots import MODEL, REFERENCE
from shared.errors import ExportError
from shared.profiles import Profile
from shared.tensors import Array

MIN_AGREEMENT = 0.97
MAX_ACCURACY_LOSS = 0.01
MIN_SPEEDUP = 0.95
"""Below 1, because two measurements of the same file differ by that much, and int8 takes a quarter of the space."""

_CANDIDATE = "int8.onnx"


@dataclass(frozen=True)
class Verdict:
    """int8 beside float32.

    agreement      share of the examples that both give the same class
    accuracy_loss  accuracy of float32 minus that of int8, 0 to 1
    speedup        median latency of float32 over that of int8
    """

    agreement: float
    accuracy_loss: float
    speedup: float

    @property
    def refusal(self) -> str | None:
        """Why int8 is not taken; None: it is."""
        if not self.agreement >= MIN_AGREEMENT:
            return f"agrees with float32 on {self.agreement:.1%} of the examples, less than {MIN_AGREEMENT:.0%}"
        if not self.accuracy_loss <= MAX_ACCURACY_LOSS:
            return f"loses {100 * self.accuracy_loss:.1f} points of accuracy, more than {100 * MAX_ACCURACY_LOSS:.0f}"
        if not self.speedup >= MIN_SPEEDUP:
            return f"is slower than float32 on this device: {self.speedup:.2f} times as fast"
        return None


def judge(int8: Array, float32: Array, labels: Array, speedup: float) -> Verdict:
    """Of logits, float32 (n, classes), for the same n labelled examples; what is not finite agrees with nothing."""
    agree = (int8.argmax(axis=1) == float32.argmax(axis=1)) & np.isfinite(int8).all(axis=1)
    correct, before = (int(np.sum(logits.argmax(axis=1) == labels)) for logits in (int8, float32))
    return Verdict(float(np.mean(agree)), (before - correct) / len(labels), speedup)


def prefer_int8(version: Path, profile: Profile) -> dict[str, float]:
    """Put int8 in the place of the float32 model.onnx in that folder, if it is as good; else nothing is changed.

    Metrics: `int8`, 1 if it was put there, else 0; where it could be made, `int8_agreement`, `int8_accuracy_loss` and
    `int8_speedup` (Verdict); where it was put there, `onnx_bytes`, `latency_ms` and `latency_ms_p95` of the new
    file.
    """
    try:
        metrics: dict[str, float] = ask("edge_agent.int8", str(version), profile.model_dump_json())
    except ExportError:  # also where it took the process down: float32 was fine, and stays
        metrics = {"int8": 0.0}
    (version / _CANDIDATE).unlink(missing_ok=True)
    return metrics


def examine(version: Path, profile: Profile) -> dict[str, float]:
    """The same, in this process; ExportError where int8 cannot be made or run."""
    from edge_agent.quantization import quantize  # 25 MB, which the supervisor's side does not need

    model, candidate = version / MODEL, version / _CANDIDATE
    with np.load(version / REFERENCE, allow_pickle=False) as arrays:
        inputs, labels = arrays["inputs"], arrays["labels"]
    candidate.write_bytes(quantize(model.read_bytes(), inputs, profile.isa))
    # Without the dense network beside them, which would double the memory that this takes.
    networks = {"int8": Network(candidate, profile), "float32": Network(model, profile)}
    latency = latencies(networks)
    speedup = latency["float32"].p50 / latency["int8"].p50
    found = judge(networks["int8"].run(inputs), networks["float32"].run(inputs), labels, speedup)
    metrics = {
        "int8": 0.0,
        "int8_agreement": found.agreement,
        "int8_accuracy_loss": found.accuracy_loss,
        "int8_speedup": found.speedup,
    }
    if found.refusal is None:
        metrics |= {
            "int8": 1.0,
            "onnx_bytes": float(candidate.stat().st_size),
            "latency_ms": latency["int8"].p50,
            "latency_ms_p95": latency["int8"].p95,
        }
        candidate.replace(model)
    return metrics


if __name__ == "__main__":
    answer(lambda version, profile: examine(Path(version), Profile.model_validate_json(profile)))
