"""The variants of the comparison, and how a checkpoint is loaded, checked and weighed.

Every checkpoint is a transformers folder. Loading states the dtype (transformers would keep the
file's own), and checks what transformers passes over: a head that is not in the file and would be
random, weights that are NaN, the wrong number of classes.

*Size* is a sum over tensors, not a figure of the library's: `get_memory_footprint()` leaves out
LLM.int8()'s row scales and NF4's block scales, and shrinks after the first forward. Parts: linear
weights, embeddings, norms and biases, head, and the state that a quantized layer needs beside its
codes (scales, zero-points, block maxima, code tables). A tensor that two modules share is counted
once. MB in tables means 2**20 bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ..cli import UserError
from ..data.datasets import LABELS
from ..data.hub import fetch_model_folder


@dataclass(frozen=True)
class Variant:
    """One row of the comparison: `script` makes `models/<folder>`; a None folder shares the
    baseline's weights.
    """

    key: str
    label: str
    folder: str
    script: str


VARIANTS = {
    variant.key: variant
    for variant in (
        Variant("baseline", "Baseline FP32", "baseline_gpt2", "src/1_baseline_finetuning.py"),
        Variant("baseline_fp16", "Baseline FP16", "baseline_gpt2", "src/3_bitsandbytes_quant.py"),
        Variant("int8_scratch", "INT8 Scratch", "int8_scratch", "src/2_quantization_scratch.py"),
        Variant(
            "int8_scratch_w8a8",
            "INT8 Scratch W8A8",
            "int8_scratch_w8a8",
            "src/2_quantization_scratch.py",
        ),
        Variant("nf4_scratch", "NF4 Scratch", "nf4_scratch", "src/2_quantization_scratch.py"),
        Variant(
            "int8_bitsandbytes",
            "INT8 BitsAndBytes",
            "int8_bitsandbytes",
            "src/3_bitsandbytes_quant.py",
        ),
        Variant(
            "nf4_bitsandbytes",
            "NF4 BitsAndBytes",
            "nf4_bitsandbytes",
            "src/3_bitsandbytes_quant.py",
        ),
    )
}
REMAKE = "make the checkpoint again or fetch it again"
FP32_KEYS = ("baseline", "int8_scratch")


def baseline_folder(models_dir: Path, checkpoint: str | None) -> Path:
    """The folder of the FP32 classifier to quantize: `--checkpoint` (folder or hub id), else script
    1's.

    Raises UserError that names script 1 where neither is there.
    """
    if checkpoint:
        return check_checkpoint(fetch_model_folder(checkpoint, flag="--checkpoint"))
    folder = models_dir / VARIANTS["baseline"].folder
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is not there yet: run python src/1_baseline_finetuning.py with the same flags first, or give --checkpoint"
        )
    return check_checkpoint(folder)


def check_checkpoint(folder: Path, new_head: bool = False) -> Path:
    """Return `folder` after a look at its config and at its weight file's header, which needs
    neither torch nor time.

    Raises UserError for a folder that is empty or damaged, another architecture, or (but for
    `new_head`) other than four labels.
    """
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no config.json: give a model folder as save_pretrained writes it"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, labels = (
            config["model_type"],
            len(config.get("id2label") or range(2)),
        )  # 2 is transformers' own default
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise UserError(
            f"{folder}/config.json cannot be read as a model's configuration: {REMAKE}"
        ) from fault
    if kind != "gpt2":
        raise UserError(
            f"{folder} is a {kind} model, and this project quantizes GPT-2: name a GPT-2 checkpoint"
        )
    if labels != len(LABELS) and not new_head:
        raise UserError(
            f"{folder} has {labels} labels where {len(LABELS)} are needed: fine-tune it with script 1"
        )
    try:
        with safe_open(weights_file(folder), framework="np"):
            return folder
    except SafetensorError as fault:
        raise UserError(
            f"{folder}/model.safetensors is damaged or cut short ({fault}): {REMAKE}"
        ) from fault


def weights_file(folder: Path) -> Path:
    """The single safetensors file of a checkpoint. Raises UserError where it is missing."""
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise UserError(
            f"{folder} has no model.safetensors: make it again, or save it with save_pretrained (not sharded)"
        )
    return path


def quiet_loading() -> None:
    """Silence transformers' progress bar and notes, which say of each model that it is being
    loaded; ours go on.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_classifier(folder: Path | str, device: str, dtype=None, new_head: bool = False):
    """A GPT-2 sequence classifier from a folder, in `dtype` (float32 when None), in eval mode, on
    `device`.

    Quantized folders (this project's schemes and bitsandbytes') load as what they are.
    `new_head=True` starts a fresh 4-class head on a language model, for fine-tuning. Raises
    UserError for a folder that is missing, empty or truncated, another architecture, other than
    four labels, a missing head, and weights that are NaN or infinite.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from ..quantization import quantizer  # noqa: F401  registers this project's schemes with transformers

    quiet_loading()
    folder = check_checkpoint(Path(folder), new_head)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(
            f"{folder}/config.json cannot be read as a model's configuration: {REMAKE}"
        ) from fault
    if new_head:
        config.num_labels = len(LABELS)
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {label: index for index, label in enumerate(LABELS)}
    config.pad_token_id = (
        config.eos_token_id if config.pad_token_id is None else config.pad_token_id
    )
    scheme = getattr(config, "quantization_config", None) or {}
    from_bitsandbytes = (
        scheme.get("quant_method") == "bitsandbytes" if isinstance(scheme, dict) else False
    )
    if from_bitsandbytes:
        from . import bitsandbytes as bnb

        bnb.require()
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=config,
        dtype=dtype or torch.float32,
        output_loading_info=True,
        device_map={"": device} if scheme else None,
    )
    missing = set(loading["missing_keys"])
    if new_head:
        missing -= {"score.weight"}
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(sorted(missing)[:3])}, so it is no fine-tuned classifier: run script 1 first"
        )
    model = model if hasattr(model, "hf_quantizer") else model.to(device)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{folder}: the weights of {name} hold NaN or infinity: {REMAKE}")
    if from_bitsandbytes:
        bnb.settle(model, device)
    return model.eval()


def has_half_arithmetic(device: str) -> bool:
    """Whether `device` multiplies float16 matrices in hardware. A CPU without it emulates them, 60
    times as slowly.
    """
    import torch

    return device == "cuda" or torch.ops.mkldnn._is_mkldnn_fp16_supported()


def float_dtype(key: str, device: str):
    """The dtype of what a variant does not quantize: float16 on CUDA, float32 on the CPU, where
    float16 is slow.

    The baseline and the published INT8 compute in float32 everywhere; the control row is loaded in
    float16 everywhere.
    """
    import torch

    half = key == "baseline_fp16" or (device == "cuda" and key not in FP32_KEYS)
    return torch.float16 if half else torch.float32


def load_variant(key: str, models_dir: Path, device: str, checkpoint: str | None = None):
    """The model of one variant, as every script measures it. Raises UserError where its folder is
    not there yet.
    """
    variant = VARIANTS[key]
    if key in ("baseline", "baseline_fp16"):
        folder = baseline_folder(models_dir, checkpoint)
    else:
        folder = models_dir / variant.folder
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not there yet: run python {variant.script} with the same flags first"
            )
    model = load_classifier(folder, device, float_dtype(key, device))
    if key == "baseline_fp16" and not has_half_arithmetic(device):
        model = model.float()  # the weights keep float16's rounding; only the arithmetic is float32
    return model


def size_in_parts(model) -> dict[str, int]:
    """Bytes of a model's tensors by part: linear, embeddings, norms_biases, head,
    quantization_state.

    Buffers count too; a tensor shared by two modules counts once. The sum is
    `resident_bytes(model)`.
    """
    parts = dict.fromkeys(("linear", "embeddings", "norms_biases", "head", "quantization_state"), 0)
    seen = set()
    for module_name, module in model.named_modules():
        for name, tensor in _own_tensors(module):
            if tensor.data_ptr() in seen and tensor.numel():
                continue
            seen.add(tensor.data_ptr())
            parts[_part(module_name, name)] += tensor.numel() * tensor.element_size()
    return parts


def _own_tensors(module):
    """Names and tensors that live in this very module, those inside bitsandbytes' wrappers
    included.
    """
    for name, tensor in [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]:
        yield name, tensor.data
        state = getattr(tensor, "quant_state", None)  # NF4: block maxima, doubly quantized
        for holder in (state, getattr(state, "state2", None)):
            for field in ("absmax", "code", "offset"):
                inner = getattr(holder, field, None)
                if hasattr(inner, "element_size"):
                    yield f"quant_state.{field}", inner
    # LLM.int8() keeps its row scales beside the parameter until the first forward and in `state`
    # after it.
    scales = getattr(getattr(module, "weight", None), "SCB", None)
    if scales is None:
        scales = getattr(getattr(module, "state", None), "SCB", None)
    if scales is not None:
        yield "quant_state.SCB", scales


def _part(module_name: str, name: str) -> str:
    """The part that a tensor belongs to, by the names that GPT-2 has in transformers."""
    last = module_name.rsplit(".", 1)[-1]
    if name not in ("weight", "bias"):
        return "quantization_state"
    if last in ("score", "lm_head"):
        return "head"
    if name == "bias" or last.startswith("ln_"):
        return "norms_biases"
    return "embeddings" if last in ("wte", "wpe") else "linear"


def resident_bytes(model) -> int:
    """Bytes of all the tensors that a model holds while it runs."""
    return sum(size_in_parts(model).values())


def file_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weight file on the disk."""
    return weights_file(folder).stat().st_size
