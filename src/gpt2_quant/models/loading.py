"""Loading a checkpoint, with checks that transformers does not make.

`checkpoints.py` looks at what can be seen without loading; here, NaN and the classes. The dtype is
stated: transformers would keep the file's own.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..data.hub import fetch_model_folder
from ..data.labels import LABELS
from ..data.tokens import load_config, load_tokenizer
from ..errors import NO_MEMORY, UserError
from .checkpoints import REMAKE, check_checkpoint, number_of_labels, read_config
from .variants import BASELINE, SCRIPTS, VARIANTS, Variant


def baseline_folder(models_dir: Path, checkpoint: str | None) -> Path:
    """`--checkpoint` (folder or hub id), else script 1's FP32 model. Raises UserError without."""
    if checkpoint:
        return check_float(fetch_model_folder(checkpoint, flag="--checkpoint"))
    folder = models_dir / BASELINE.folder
    if not (folder / "config.json").is_file():
        missing = f"{folder} is not there yet: run python {SCRIPTS[1]} with the same flags first"
        raise UserError(f"{missing}, or give --checkpoint")
    return check_float(folder)


def check_float(folder: Path, new_head: bool = False) -> Path:
    """`check_checkpoint` where floats are needed. Raises UserError for a quantized folder, too."""
    if read_config(folder).get("quantization_config"):
        fault = f"{folder} is quantized already"
        raise UserError(f"{fault}: give the FP32 model that it was made from")
    return check_checkpoint(folder, new_head)


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
    from transformers import AutoModelForSequenceClassification
    from transformers.activations import ACT2FN

    from ..quantization import quantizer  # noqa: F401  registers the schemes with transformers

    quiet_loading()
    folder = check_checkpoint(Path(folder), new_head)
    config = load_config(folder)
    if config.activation_function not in ACT2FN:
        unknown = f"{config.activation_function!r} is no activation function of transformers"
        raise UserError(f"{folder}/config.json: {unknown}: correct it")
    needed = config.num_labels = len(classes)
    if not new_head and (found := number_of_labels(folder)) != needed:
        said = f"{found} labels where {needed} are needed"
        raise UserError(f"{folder} has {said}, one for each class: run script 1 on this data set")
    if config.pad_token_id is None:
        config.pad_token_id = load_tokenizer(folder).pad_token_id
    order = list(range(needed)) if new_head else _order_of_labels(folder, classes)
    quantization = getattr(config, "quantization_config", None) or {}
    from_library = quantization.get("quant_method") == "bitsandbytes"
    if from_library:
        from . import bitsandbytes

        bitsandbytes.require()
        bitsandbytes.check_files(folder)
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(  # nosec B615: local
            folder,
            config=config,
            dtype=dtype or torch.float32,
            output_loading_info=True,
            attn_implementation="sdpa",
            device_map={"": device} if quantization else None,
        )
    except (RuntimeError, TypeError, ValueError, AttributeError) as fault:
        if NO_MEMORY.search(str(fault)):
            raise
        said = " ".join(str(fault).split())[:150]
        raise UserError(
            f"{folder} does not load as its config.json says ({said}): {REMAKE}"
        ) from fault
    if missing := sorted(set(loading["missing_keys"]) - ({"score.weight"} if new_head else set())):
        raise UserError(f"{folder} lacks {', '.join(missing[:3])}: {REMAKE}")
    if not quantization:
        model = model.to(device)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{folder}: the weights of {name} hold NaN or infinity: {REMAKE}")
        scales = name.endswith(("SCB", "absmax", "weight_scale"))
        if scales and ((tensor < 0).any() or not tensor.any()):
            raise UserError(f"{folder}: {name} holds scales below zero or zeros alone: {REMAKE}")
        if name.endswith("quant_map") and (tensor.diff() <= 0).any():
            raise UserError(f"{folder}: the levels of {name} do not ascend: {REMAKE}")
    if order != sorted(order):
        model.score.weight.data = model.score.weight.data[order]
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = dict(zip(classes, range(needed), strict=True))
    if from_library:
        # transformers 5.23 leaves unquantized weights in the file's dtype, biases in the asked one.
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype or torch.float32)
        if not has_half_arithmetic(device):
            bitsandbytes.compute_in_float32(model)
    return model.eval()


def _order_of_labels(folder: Path, classes: Sequence[str]) -> list[int]:
    """The checkpoint's row of each class of the data set: by name, else, where one of the two has
    numbers only (LABEL_0 or 0), by number, which is said. Raises UserError for other names.
    """
    names = read_config(folder).get("id2label") or {}
    theirs = [str(names.get(str(row), row)) for row in range(len(names) or len(classes))]
    numbers = [str(number) for number in range(len(classes))]
    for fold in (str, str.casefold, _letters):
        found, wanted = [*map(fold, theirs)], [*map(fold, classes)]
        if sorted(found) == sorted(wanted) and len(set(wanted)) == len(wanted):
            return [found.index(name) for name in wanted]
    bare = [_letters(name).removeprefix("label") for name in theirs]
    if sorted(bare) == sorted(numbers) or [*classes] == numbers:
        print(f"{folder}: its classes are matched with the data set's by number, not by name")
        return [*map((bare if sorted(bare) == sorted(numbers) else numbers).index, numbers)]
    fault = f"{folder} names its classes {', '.join(theirs[:9])}; they must be"
    raise UserError(f"{fault} {', '.join(classes[:9])}: rename them in its config.json")


def _letters(name: object) -> str:
    """Sci/Tech, sci-tech and "SCI TECH" are one name."""
    return "".join(filter(str.isalnum, str(name).casefold()))


def has_half_arithmetic(device: str) -> bool:
    """Whether `device` multiplies float16 matrices: a CPU may emulate that, 60 times slower."""
    import torch

    return device == "cuda" or torch.ops.mkldnn._is_mkldnn_fp16_supported()


def unavailable(variant: Variant, device: str) -> str:
    """Why `device` has no row of `variant`; "" where it has one."""
    import torch

    if variant.needs == "float16" and not has_half_arithmetic(device):
        return f"{variant.label} has no row here: this CPU would compute it in float32"
    tensor_cores = device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    if variant.needs == "tf32" and not tensor_cores:
        return f"{variant.label} has no row here: it takes an NVIDIA GPU from Ampere on"
    if variant.in_onnx and not find_spec("onnxruntime"):
        return f"{variant.label} is not timed: onnxruntime is not installed"
    return ""


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
    from .tf32 import compute_in_tf32

    model = load_classifier(folder, device, float_dtype(variant, device), classes=classes)
    if variant.floats == "float16" and not has_half_arithmetic(device):
        model = model.float()  # weights keep float16's rounding; only the arithmetic is float32
    if variant.needs == "tf32":
        compute_in_tf32(model)
    return model
