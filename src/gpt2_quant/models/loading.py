"""Loading a checkpoint, with checks that transformers does not make.

Refused are a head that is not in the file and would be random, NaN, and the wrong number of
classes. The dtype is stated: transformers would keep the file's own.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..data.hub import fetch_model_folder
from ..data.labels import LABELS
from ..data.tokens import load_tokenizer
from ..errors import UserError
from .variants import BASELINE, SCRIPTS, VARIANTS, Variant

REMAKE = "make the checkpoint again or fetch it again"
NO_CONFIG = f"is not a model's configuration: {REMAKE}"


def baseline_folder(models_dir: Path, checkpoint: str | None) -> Path:
    """`--checkpoint` (folder or hub id), else script 1's FP32 model. Raises UserError without."""
    if checkpoint:
        folder = check_checkpoint(fetch_model_folder(checkpoint, flag="--checkpoint"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("quantization_config"):
            fault = f"--checkpoint {checkpoint} is quantized already"
            raise UserError(f"{fault}: give the FP32 classifier that it was made from")
        return folder
    folder = models_dir / BASELINE.folder
    if not (folder / "config.json").is_file():
        missing = f"{folder} is not there yet: run python {SCRIPTS[1]} with the same flags first"
        raise UserError(f"{missing}, or give --checkpoint")
    return check_checkpoint(folder)


def check_checkpoint(folder: Path, classes: Sequence[str] | None = None) -> Path:
    """`folder`, after a look at its config and its weight file's header, without torch.

    Raises UserError where it is empty or damaged, for another architecture, or (where it is given)
    another number of labels than `classes`.
    """
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json: give a folder that save_pretrained wrote")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
        labels = len(config.get("id2label") or range(2))  # 2 is transformers' own default
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise UserError(f"{folder}/config.json {NO_CONFIG}") from fault
    if kind != "gpt2":
        raise UserError(f"{folder} is a {kind} model, and this project quantizes GPT-2: name one")
    if classes and labels != (needed := len(classes)):
        said = f"{folder} has {labels} labels where {needed} are needed"
        raise UserError(f"{said}, one for each class of the data set: run script 1 on it")
    path = weights_file(folder)
    try:
        with safe_open(path, framework="np"):
            return folder
    except SafetensorError as fault:
        raise UserError(f"{path} is damaged or cut short ({fault}): {REMAKE}") from fault


def weights_file(folder: Path) -> Path:
    """Raises UserError where a checkpoint's safetensors file is missing or sharded."""
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        how = "make it again, or save it with save_pretrained (not sharded)"
        raise UserError(f"{folder} has no model.safetensors: {how}")
    return path


def quiet_loading() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_classifier(
    folder: Path | str,
    device: str,
    dtype=None,
    new_head: bool = False,
    classes: Sequence[str] = LABELS,
):
    """A GPT-2 sequence classifier in `dtype` (float32 when None), in eval mode.

    Its rows are put into the order of the data set's `classes`. Quantized folders load as what they
    are; `new_head` starts a head on a language model.
    Raises UserError as `check_checkpoint`, for a missing head and for NaN or infinity.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from ..quantization import quantizer  # noqa: F401  registers the schemes with transformers

    quiet_loading()
    folder = check_checkpoint(Path(folder), None if new_head else classes)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(f"{folder}/config.json {NO_CONFIG}") from fault
    if new_head:
        config.num_labels = len(classes)
    if config.pad_token_id is None:
        has_tokenizer = any(folder.glob("tokenizer.json")) or any(folder.glob("vocab.json"))
        pad = load_tokenizer(folder).pad_token_id if has_tokenizer else config.eos_token_id
        config.pad_token_id = pad
    order = list(range(len(classes)))
    if not new_head:
        order = _order_of_labels(config.id2label, classes, folder)
    quantization = getattr(config, "quantization_config", None)
    from_library = (quantization or {}).get("quant_method") == "bitsandbytes"
    if from_library:
        from . import bitsandbytes

        bitsandbytes.require()
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=config,
        dtype=dtype or torch.float32,
        output_loading_info=True,
        device_map={"": device} if quantization else None,
    )
    missing = set(loading["missing_keys"]) - ({"score.weight"} if new_head else set())
    if missing:
        names = ", ".join(sorted(missing)[:3])
        raise UserError(f"{folder} lacks {names}, so it is no fine-tuned classifier: run script 1")
    if not quantization:
        model = model.to(device)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{folder}: the weights of {name} hold NaN or infinity: {REMAKE}")
    if order != sorted(order):
        model.score.weight.data = model.score.weight.data[order]
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {label: index for index, label in enumerate(classes)}
    if from_library:
        # transformers 5.23 leaves unquantized weights in the file's dtype, biases in the asked one.
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype or torch.float32)
        if not has_half_arithmetic(device):
            bitsandbytes.compute_in_float32(model)
    return model.eval()


def _order_of_labels(names: dict[int, str], classes: Sequence[str], folder: Path) -> list[int]:
    """The checkpoint's row of each class of the data set: by name, else, where one of the two has
    numbers only, by number, which is said. Raises UserError for names of other classes.
    """
    theirs = [str(names[index]).casefold() for index in sorted(names)]
    ours = [label.casefold() for label in classes]
    if sorted(theirs) == sorted(ours):
        return [theirs.index(label) for label in ours]
    if any(all(re.fullmatch(r"(label_)?\d+", label) for label in side) for side in (theirs, ours)):
        print(f"{folder}: its classes are matched with the data set's by number, for want of names")
        return list(range(len(ours)))
    listed = ", ".join(map(str, [*names.values()][:9]))
    mend = f"they must be {', '.join([*classes][:9])}: rename them in its config.json"
    raise UserError(f"{folder} names its classes {listed}; {mend}")


def has_half_arithmetic(device: str) -> bool:
    """Whether `device` multiplies float16 matrices: a CPU may emulate that, 60 times slower."""
    import torch

    return device == "cuda" or torch.ops.mkldnn._is_mkldnn_fp16_supported()


def float_dtype(variant: Variant, device: str):
    import torch

    half = variant.floats == "float16" or (variant.floats == "fast" and device == "cuda")
    return torch.float16 if half else torch.float32


def load_variant(
    key: str,
    models_dir: Path,
    device: str,
    checkpoint: str | None = None,
    classes: Sequence[str] = LABELS,
):
    """The model of a variant. Raises UserError without its folder."""
    variant = VARIANTS[key]
    folder = models_dir / variant.folder
    if not variant.method:
        folder = baseline_folder(models_dir, checkpoint)
    elif not folder.is_dir():
        script = variant.script_path
        raise UserError(f"{folder} is not there yet: run python {script} with the same flags first")
    model = load_classifier(folder, device, float_dtype(variant, device), classes=classes)
    if variant.floats == "float16" and not has_half_arithmetic(device):
        model = model.float()  # weights keep float16's rounding; only the arithmetic is float32
    return model
