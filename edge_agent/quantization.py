"""A float32 ONNX file as one that computes in int8, calibrated on the device's own data. No torch."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from shared.errors import ExportError
from shared.onnx_file import INPUT, parse, properties, tidy
from shared.tensors import Array

CALIBRATION_EXAMPLES = 128
"""Examples from which the ranges of the activations are taken; more move them little."""
BATCH = 8
"""Examples that are run at once: calibration keeps every activation of a batch in memory."""

_VARIANTS: Mapping[str, tuple[QuantType, bool]] = {
    "x86-64-avx2": (QuantType.QUInt8, True),
    "x86-64-vnni": (QuantType.QUInt8, False),
    "armv7": (QuantType.QInt8, False),
    "armv8.0": (QuantType.QInt8, False),
    "armv8.2-dotprod": (QuantType.QInt8, False),
}
"""Instruction set -> type of the activations, and whether weights keep to 7 bits. AVX2 adds two products of an unsigned
and a signed byte in 16 bits and saturates (VPMADDUBSW): 2 * 255 * 127 does not fit, 2 * 255 * 64 does."""


class _Batches:
    """What the runtime's calibration reads; it asks for nothing but this method."""

    def __init__(self, inputs: Array) -> None:
        self._batches = iter([inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)])

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def quantize(data: bytes, inputs: Array, isa: str) -> bytes:
    """The network of the file `data`, which shared.onnx_runtime.optimize has made, in int8: pairs of QuantizeLinear and
    DequantizeLinear around every operator that the runtime has in int8 (QDQ), weights with a scale per channel.

    inputs  float32 (n, ...), normalized: the first 128 tell the range of every activation
    isa     as shared.profiles.Profile.isa: which variant neither saturates nor runs slowly there

    ExportError if the runtime's quantizer cannot do it.
    """
    model = parse(data)
    card = properties(model)
    # Says that it is optimized already; without, the quantizer warns.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    activations, reduce_range = _VARIANTS[isa]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                model,
                path,
                _Batches(np.ascontiguousarray(inputs[:CALIBRATION_EXAMPLES], dtype=np.float32)),
                quant_format=QuantFormat.QDQ,
                activation_type=activations,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=reduce_range,
            )
        except Exception as error:  # the quantizer raises whatever it meets
            raise ExportError(f"ONNX Runtime cannot quantize the model: {error}") from error
        quantized = onnx.load(path)
    tidy(quantized, card)
    result: bytes = quantized.SerializeToString()
    parse(result)
    return result
