"""The hand-written schemes as a quantization method of transformers.

After `import gpt2_quant.quantization.quantizer`,

    AutoModelForSequenceClassification.from_pretrained("models/int8_scratch_w8a8")

returns a running quantized model, and an unquantized GPT-2 is quantized while it loads with
`quantization_config=ScratchConfig("nf4_scratch")`. It works for any GPT-2 head. transformers asks a
quantizer for two things: a *skeleton* (the model's modules replaced, still without memory) before
the file's tensors are put in by name, and a last touch after it. A folder that was quantized before
needs the first, a float one the second.

    int8_scratch       one scale and zero-point for each parameter; the file holds the codes, loading dequantizes them
    int8_scratch_w8a8  Int8Linear and Int8Embedding; biases, LayerNorm and the classification head stay float
    nf4_scratch        NF4Linear and NF4Embedding, positions in int8; the same parts stay float

`config.json` keeps the scheme, the version of this layout and a sha256 over all codes and scales.
transformers loads tensors of the wrong shape into quantized models without a word, so shapes,
dtypes and checksum are checked here.
"""

import warnings
from collections.abc import Callable

import torch
from torch import nn
from transformers import GPT2PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..cli import UserError
from . import integrity, stored_int8
from .layers import Int8Embedding, Int8Linear, NF4Embedding, NF4Linear, QuantizedLayer, TiedHead

METHOD = "gpt2_quant"
FORMAT_VERSION = 1
SCHEMES = ("int8_scratch", "int8_scratch_w8a8", "nf4_scratch")
LINEAR = {"int8_scratch_w8a8": Int8Linear, "nf4_scratch": NF4Linear}


@register_quantization_config(METHOD)
class ScratchConfig(QuantizationConfigMixin):
    """What `config.json` says about a folder: scheme, layout version, sha256 over codes and scales
    (None: not yet).
    """

    def __init__(
        self, scheme: str, format_version: int = FORMAT_VERSION, sha256: str | None = None, **_
    ):
        self.quant_method = METHOD
        self.scheme = scheme
        self.format_version = format_version
        self.sha256 = sha256


@register_quantizer(METHOD)
class ScratchQuantizer(HfQuantizer):
    """transformers' hooks for the three schemes."""

    def validate_environment(self, *args, **kwargs):
        """Raise UserError for a scheme or layout version that this code does not know."""
        config = self.quantization_config
        if config.scheme not in SCHEMES:
            raise UserError(
                f"unknown quantization scheme {config.scheme!r}: the schemes are {', '.join(SCHEMES)}"
            )
        if config.format_version != FORMAT_VERSION:
            raise UserError(
                f"the folder was quantized in layout version {config.format_version}, this code reads version "
                f"{FORMAT_VERSION}: quantize again with python src/2_quantization_scratch.py --overwrite"
            )

    def _process_model_before_weight_loading(
        self, model, dtype=None, checkpoint_files=None, **kwargs
    ):
        if not self.pre_quantized:
            return
        scheme = self.quantization_config.scheme
        if scheme == "int8_scratch":
            stored_int8.replace_parameters(model)
        else:
            replace_modules(model, scheme, dtype or torch.get_default_dtype(), fill=False)
        integrity.check_files(model, checkpoint_files or [], self.quantization_config.sha256)

    def _process_model_after_weight_loading(self, model, **kwargs):
        if not self.pre_quantized:
            return quantize_model(model, self.quantization_config.scheme)
        if self.quantization_config.scheme == "int8_scratch":
            stored_int8.restore_parameters(model)
        warn_if_slow(self.quantization_config.scheme, model.device.type)
        return model

    def get_state_dict_and_metadata(self, model):
        """The tensors to save; `int8_scratch`, which runs as floats, goes back to its codes."""
        if self.quantization_config.scheme != "int8_scratch":
            return None, {}
        return stored_int8.encode_state(model, self.quantization_config.sha256), {}

    def is_serializable(self):
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def quantize_model(model: GPT2PreTrainedModel, scheme: str) -> GPT2PreTrainedModel:
    """Quantize a float GPT-2 in place and return it, ready to run and to `save_pretrained`.

    Float parts keep the model's dtype. Raises UserError for a model that is no GPT-2, is quantized
    already or holds NaN or infinity, and for an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise UserError(
            f"unknown quantization scheme {scheme!r}: the schemes are {', '.join(SCHEMES)}"
        )
    if not isinstance(model, GPT2PreTrainedModel):
        raise UserError(
            f"{type(model).__name__} is not a GPT-2: these schemes know its layers only"
        )
    if any(isinstance(module, QuantizedLayer) for module in model.modules()) or hasattr(
        model, "int8_scratch_names"
    ):
        raise UserError("the model is quantized already: load the float checkpoint instead")
    config = ScratchConfig(scheme)
    if scheme == "int8_scratch":
        stored_int8.quantize_parameters(model)
        config.sha256 = integrity.checksum(stored_int8.encode_state(model, None))
    else:
        replace_modules(model, scheme, model.dtype, fill=True)
        config.sha256 = integrity.checksum(model.state_dict())
    quantizer = ScratchQuantizer(config, pre_quantized=True)
    model.hf_quantizer, model.quantization_method, model.is_quantized = quantizer, METHOD, True
    model.config.quantization_config = config
    warn_if_slow(scheme, model.device.type)
    return model.eval()


def warn_if_slow(scheme: str, device: str) -> None:
    """Say once that a CPU lacks the int8 dot product: torch then computes the same integers,
    slower.
    """
    if scheme == "int8_scratch_w8a8" and device == "cpu" and not cpu_has_int8_dot():
        warnings.warn(
            "this CPU has no int8 dot product (AVX512-VNNI): int8 layers give the same results, but slower than FP32",
            stacklevel=2,
        )


def cpu_has_int8_dot() -> bool:
    """Whether the CPU multiplies int8 vectors in one instruction."""
    return torch.cpu._is_vnni_supported()


def replace_modules(
    model: GPT2PreTrainedModel,
    scheme: str,
    dtype: torch.dtype,
    fill: bool,
    wanted: Callable[[str], bool] = lambda path: True,
) -> None:
    """Put quantized layers in the place of Conv1D, embeddings and language-model head; `fill` them
    from the weights.

    `wanted(path)` picks among them, to study one kind of matrix at a time.
    """
    tied = _has_tied_head(model)
    for path, module in list(model.named_modules()):
        if not wanted(path):
            continue
        if path == "lm_head":
            new = (
                TiedHead(model.transformer.wte)
                if tied
                else _linear_like(module, scheme, dtype, path, fill)
            )
        elif isinstance(module, Conv1D):
            new = _linear_like(module, scheme, dtype, path, fill)
        elif isinstance(module, nn.Embedding):
            new = _embedding_like(module, scheme, dtype, path, fill)
        else:
            continue
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
    if tied and wanted("lm_head"):
        model._tied_weights_keys = None
        model.all_tied_weights_keys = {}


def _linear_like(
    module: Conv1D | nn.Linear, scheme: str, dtype: torch.dtype, path: str, fill: bool
) -> QuantizedLayer:
    """A quantized layer of the same size as a float one; Conv1D keeps its weight as [in, out]."""
    weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
    layer = LINEAR[scheme](
        weight.shape[1], weight.shape[0], module.bias is not None, dtype, weight.device
    )
    return layer.quantize_(weight, module.bias, f"{path}.weight") if fill else layer


def _embedding_like(
    module: nn.Embedding, scheme: str, dtype: torch.dtype, path: str, fill: bool
) -> QuantizedLayer:
    """A quantized table. Positions are 0.6% of GPT-2 and enter every token, so NF4 leaves them at 8
    bits.
    """
    in_nf4 = scheme == "nf4_scratch" and not path.endswith("wpe")
    layer = (NF4Embedding if in_nf4 else Int8Embedding)(
        *module.weight.shape, dtype, module.weight.device
    )
    return layer.quantize_(module.weight, f"{path}.weight") if fill else layer


def _has_tied_head(model: GPT2PreTrainedModel) -> bool:
    return hasattr(model, "lm_head") and bool(model.config.tie_word_embeddings)
