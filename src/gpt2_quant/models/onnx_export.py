"""A classifier as an ONNX file, by torch's exporter, and its logits by ONNX Runtime on the CPU.

The file holds what the checkpoint holds, under the same names:

FP32  floats
INT8  codes, scale and zero-point of each parameter, which a DequantizeLinear node reads
W8A8  codes and scales per channel, read likewise; the graph rounds activations as the model does
NF4   codes and the tables that they are looked up in: DequantizeLinear has even steps alone

FP8's codes cannot be exported by torch. ONNX Runtime makes floats of all codes but the looked-up
embeddings' when it loads a file, and multiplies floats: a quantized row is small on the disk, and
no faster than FP32.
"""

import copy
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..quantization import affine
from ..records import atomic_path
from .sizes import PARTS, part_of, size_in_parts, stored_size

NAME = "model.onnx"
TABLES = 4 * (256 * 2 + 256)  # bytes of NF4's, which checkpoints do without
# Logits may differ by this many times torch's rounding error: sums in another order err alike, and
# the largest of few errors varies.
ROOM = 8
MEND = "no file is kept: pip install -r requirements-dev.txt, and give the same command again"


class _Logits(nn.Module):
    """INT8's parameters, floats in memory, are codes again: buffers, with / for a name's dots."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        if hasattr(model, "int8_scales"):
            for name, x in model.hf_quantizer.get_state_dict_and_metadata(model)[0].items():
                self.register_buffer(name.replace(".", "/"), x)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = {}
        for name, x in self.model.named_parameters():
            if (own := name.replace(".", "/")) in self._buffers:
                parts = (self.get_buffer(own + part) for part in ("", "_scale", "_zero_point"))
                weights[name] = affine.dequantize(*parts).view(x.shape)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        return torch.func.functional_call(self.model, weights, kwargs=inputs).logits


def write(model, source: Path, folder: Path, ids: Tensor, mask: Tensor) -> dict:
    """Write `model`, float32 on the CPU and loaded from the checkpoint `source`, to `folder`.

    Its logits on `ids` under `mask`, int64 [B, L] with B of 2 or more, are held against torch's.
    Returns a record's `size` and `onnx`. Raises UserError, and leaves no file, where they differ
    beyond rounding or where floats stand for codes.
    """
    dim = torch.export.Dim
    axes = {0: dim("batch"), 1: dim("length", max=model.config.n_positions)}
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        with warnings.catch_warnings(action="ignore"), torch.no_grad():  # on the axes' names
            # Optimizing would fold codes into floats; ONNX Runtime does it when it loads the file.
            program: Any = torch.onnx.export(
                _Logits(model).eval(), (ids, mask), dynamo=True, optimize=False, verbose=False,
                output_names=["logits"], dynamic_shapes=(axes, axes),
            )  # fmt: skip
        for node in program.model.graph:
            node.metadata_props.clear()  # paths of this machine
        program.save(temporary / NAME)  # from 2 GB on with its weights in a file beside it
        parts = dict.fromkeys(PARTS, 0)
        for name, value in program.model.graph.initializers.items():
            parts[part_of(name.replace("/", "."))] += value.const_value.nbytes
        if (total := sum(parts.values())) > stored_size(source)["tensor_bytes"] + TABLES:
            raise UserError(f"{folder} would hold floats where {source} holds codes: {MEND}")
        checked = _check(model, load(temporary), ids, mask)
        if not (gap := checked["largest_logit_difference"]) <= (bound := checked["bound"]):
            fault = f"ONNX Runtime's logits are {gap:.2g} from those of {source}"
            raise UserError(f"{fault}, more than the {bound:.2g} of rounding: {MEND}")
        file_bytes = sum(path.stat().st_size for path in temporary.iterdir())
    held = size_in_parts(model)
    rest = held["norms_biases"] + held["head"]  # the linear layers' weights are floats now
    held["linear"] = 4 * model.num_parameters(exclude_embeddings=True) - rest
    stored = {"parts": parts, "tensor_bytes": total, "header_bytes": file_bytes - total}
    size = {"parts": held, "file_bytes": file_bytes, "stored": stored}
    size["tensor_bytes"] = size["resident_bytes"] = sum(held.values())
    return {"size": size, "onnx": checked}


@torch.inference_mode()
def _check(model, function: Callable, ids: Tensor, mask: Tensor) -> dict:
    """The largest difference of logits, and its bound: `ROOM` times how far torch's are from those
    of the same weights in float64. There W8A8's activations are not rounded, either: where a sum's
    last bit decides a rounding, a code moves, and the difference grows to that of all roundings.
    """
    exact = copy.deepcopy(model)
    if getattr(exact, "is_quantized", False):
        exact = exact.dequantize(torch.float64)
    expected, ideal = (m(ids, attention_mask=mask).logits for m in (model, exact.double()))
    gaps = [float((x - expected).abs().max()) for x in (function(ids, mask), ideal)]
    return {"largest_logit_difference": gaps[0], "bound": ROOM * gaps[1], "n": len(ids)}


def load(folder: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """(input_ids, attention_mask) -> logits float32 [B, C], on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no line for each node that it cannot fold
    options.intra_op_num_threads = torch.get_num_threads()
    # Else it takes int8 weights for leave to round activations, too: INT8's logits move by 0.03.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Spinning saves a tenth, at the cost of the rows that are timed in turns with it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(folder / NAME, options, ["CPUExecutionProvider"])

    def function(ids: Tensor, mask: Tensor) -> Tensor:
        inputs = {"input_ids": ids.cpu().numpy(), "attention_mask": mask.cpu().numpy()}
        return torch.from_numpy(session.run(None, inputs)[0])

    return function
