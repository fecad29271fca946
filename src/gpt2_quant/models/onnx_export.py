"""A classifier as an ONNX file, by torch's exporter, and its logits by ONNX Runtime on the CPU.

The file holds what the checkpoint holds, under the same names:

FP32  floats
INT8  each parameter's codes, scale and zero-point: a DequantizeLinear node
W8A8  codes and scales per channel, DequantizeLinear; the graph rounds the activations as torch does
NF4   codes and the two tables that they are looked up in: DequantizeLinear knows even steps alone

ONNX Runtime makes floats of the linear layers' codes once, as it loads the file, and multiplies
these: a quantized row is small on the disk, neither smaller in memory nor faster. FP8 is refused,
whose codes torch's exporter cannot write.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..quantization import affine
from ..records import atomic_path
from .sizes import PARTS, part_of, size_in_parts, stored_size

NAME = "model.onnx"
TABLES = 4 * (256 * 2 + 256)  # bytes of NF4's, which the checkpoint does without
# Logits may differ by that many times torch's own rounding error: two orders of summation err
# alike, and a largest of few errors varies.
ROOM = 8
MEND = "pip install -r requirements-dev.txt"
REFUSED = (
    "no ONNX file, since torch's exporter cannot write its codes, and floats in their place would "
    "be another model"
)


class _Logits(nn.Module):
    """input_ids and attention_mask, int64 [B, L] -> logits, float32 [B, C].

    What INT8 stores and holds as floats becomes codes again: buffers with / for the names' dots.
    """

    def __init__(self, model):
        super().__init__()
        self.model, self.stored = model, {}
        if hasattr(model, "int8_scales"):
            self.stored, _ = model.hf_quantizer.get_state_dict_and_metadata(model)
        for name, x in self.stored.items():
            self.register_buffer(name.replace(".", "/"), x)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = {}
        for name, x in self.model.named_parameters():
            if name in self.stored:
                own = (f"{name}{part}".replace(".", "/") for part in ("", "_scale", "_zero_point"))
                weights[name] = affine.dequantize(*map(self.get_buffer, own)).view(x.shape)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        return torch.func.functional_call(self.model, weights, kwargs=inputs).logits


def write(model, source: Path, folder: Path, ids: Tensor, mask: Tensor) -> dict:
    """Write `model`, float32 on the CPU and loaded from the checkpoint `source`, to `folder`.

    Its logits on `ids` under `mask`, int64 [B, L] with B of 2 or more, are held against torch's.
    Returns a record's `size` and `onnx`. Raises UserError, and leaves no file, where they differ
    beyond rounding or the file holds more than the checkpoint.
    """
    longest, dim = model.config.n_positions, torch.export.Dim
    axes = {0: dim("batch"), 1: dim("length", max=longest)}
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # on names of axes
            # Unoptimized: folding constants would make floats of codes. ONNX Runtime optimizes.
            program: Any = torch.onnx.export(
                _Logits(model), (ids, mask), dynamo=True, optimize=False, verbose=False,
                output_names=["logits"], dynamic_shapes=(axes, axes),
            )  # fmt: skip
        for node in program.model.graph:
            node.metadata_props.clear()  # where in this machine's code it comes from
        program.save(temporary / NAME)  # weights in a file beside it from 2 GB on
        size = _size(program.model.graph.initializers.items(), temporary)
        checked = _check(model, load(temporary), ids, mask)
        if size["tensor_bytes"] > stored_size(source)["tensor_bytes"] + TABLES:
            raise UserError(f"{folder} would hold floats where {source} holds codes: {MEND}")
        if not checked["largest_logit_difference"] <= checked["bound"]:
            said = "by {largest_logit_difference:.2g}, more than the {bound:.2g} of rounding"
            fault = f"ONNX Runtime's logits differ from those of {source} {said.format(**checked)}"
            raise UserError(f"{fault}, so no ONNX file is kept: {MEND}")
    held = size_in_parts(model)
    rest = held["norms_biases"] + held["head"]
    held["linear"] = 4 * model.num_parameters(exclude_embeddings=True) - rest
    total = sum(held.values())
    sizes = {"parts": held, "tensor_bytes": total, "resident_bytes": total, "stored": size}
    sizes["file_bytes"] = size["tensor_bytes"] + size["header_bytes"]
    return {"size": sizes, "onnx": checked}


def _size(initializers: Iterable, folder: Path) -> dict:
    """As `stored_size`; the graph is the header."""
    parts = dict.fromkeys(PARTS, 0)
    for name, value in initializers:
        parts[part_of(name.replace("/", "."))] += value.const_value.nbytes
    total = sum(parts.values())
    file_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return {"parts": parts, "tensor_bytes": total, "header_bytes": file_bytes - total}


@torch.inference_mode()
def _check(model, function: Callable, ids: Tensor, mask: Tensor) -> dict:
    """The largest difference of logits, and its bound: `ROOM` times how far torch's are from those
    of the same weights in float64, where W8A8's activations are not rounded, either. (There the
    last bit of a sum decides a few roundings to int8: codes move by one.)
    """
    exact = copy.deepcopy(model)
    if getattr(exact, "is_quantized", False):
        exact = exact.dequantize(torch.float64)
    expected, ideal = (
        m(input_ids=ids, attention_mask=mask).logits for m in (model, exact.double())
    )
    difference = (function(ids, mask) - expected).abs().max().item()
    rounding = (expected - ideal).abs().max().item()
    return {"largest_logit_difference": difference, "bound": ROOM * rounding, "n": len(ids)}


def load(folder: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """(input_ids, attention_mask) -> logits float32 [B, C], on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # without a line for each node that it cannot fold
    options.intra_op_num_threads = torch.get_num_threads()
    # Else it takes int8 weights for leave to round activations, too: INT8's logits move by 0.03.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Between two calls other rows are timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(folder / NAME, options, providers=providers)

    def function(ids: Tensor, mask: Tensor) -> Tensor:
        inputs = {"input_ids": ids.cpu().numpy(), "attention_mask": mask.cpu().numpy()}
        return torch.from_numpy(session.run(None, inputs)[0])

    return function
