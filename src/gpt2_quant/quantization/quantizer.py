"""The hand-written schemes as a quantization method of transformers.

Importing this module makes `from_pretrained` load a scheme's folder as a running quantized model,
with any head, and quantize a float GPT-2 under `quantization_config=ScratchConfig(<scheme>)`.
Shapes, dtypes and a sha256 over codes and scales are checked, which transformers does not do.
"""

import warnings
from pkgutil import resolve_name
from types import MethodType
from typing import Any

import torch
from transformers import GPT2PreTrainedModel, PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import UserError
from . import SCHEMES, integrity, product
from .layers import Embedding, Int8Linear, QuantizedLayer

METHOD = "gpt2_quant"
FORMAT_VERSION = 2  # since 2 stored int8 codes are flat, so that no loader takes them for floats


def scheme_named(name: str) -> Any:
    """Raises UserError for an unknown scheme."""
    if name not in SCHEMES:
        known = ", ".join(SCHEMES)
        raise UserError(f"unknown quantization scheme {name!r}: the schemes are {known}")
    return resolve_name(SCHEMES[name])


@register_quantization_config(METHOD)
class ScratchConfig(QuantizationConfigMixin):
    """The folder's entry in `config.json`; `sha256` is None until quantized."""

    def __init__(
        self, scheme: str, format_version: int = FORMAT_VERSION, sha256: str | None = None, **_
    ):
        self.__dict__["quant_method"] = METHOD  # typed by transformers as one of its own
        self.scheme = scheme
        self.format_version = format_version
        self.sha256 = sha256


@register_quantizer(METHOD)
class ScratchQuantizer(HfQuantizer):
    quantization_config: ScratchConfig

    def validate_environment(self, *args, **kwargs):
        """Raise UserError for an unknown scheme or layout version."""
        config = self.quantization_config
        self.scheme = scheme_named(config.scheme)
        if config.format_version not in range(1, FORMAT_VERSION + 1):
            raise UserError(
                f"the folder has layout version {config.format_version}, this code reads up to "
                f"{FORMAT_VERSION}: run python src/2_quantization_scratch.py --overwrite"
            )

    def _process_model_before_weight_loading(self, model, checkpoint_files=None, **kwargs):
        if self.pre_quantized:
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            config = self.quantization_config
            self.scheme.replace(model, dtype, fill=False, version=config.format_version)
            integrity.check_files(model, checkpoint_files or [], config.sha256)

    def _process_model_after_weight_loading(self, model, **kwargs):
        if not self.pre_quantized:
            return quantize_model(model, self.quantization_config.scheme)
        self.scheme.finish(model)
        config = self.quantization_config
        if config.format_version < FORMAT_VERSION:
            config.format_version = FORMAT_VERSION
            config.sha256 = integrity.checksum(self.scheme.state(model, None) or model.state_dict())
        return _present(model)

    def _dequantize(self, model, dtype=None):
        scheme_named(self.quantization_config.scheme).dequantize(model)
        for method in (num_parameters, resize_token_embeddings):
            delattr(model, method.__name__)
        return model.to(dtype)

    def get_state_dict_and_metadata(self, model):
        config = self.quantization_config
        return scheme_named(config.scheme).state(model, config.sha256), {}

    def is_serializable(self):
        return True

    is_trainable = property(lambda self: True)  # adapters on top
    is_qat_trainable = property(lambda self: True)  # head and norms; Trainer.evaluate asks, too
    is_compileable = property(lambda self: True)


def quantize_model(model: Any, name: str) -> Any:
    """Quantize a float GPT-2 in place, ready to save; float parts keep their dtype.

    Raises UserError for an unknown scheme and a model that is no GPT-2, is quantized already or
    holds NaN or infinity.
    """
    scheme = scheme_named(name)
    if not issubclass(type(model), GPT2PreTrainedModel):
        raise UserError(f"{type(model).__name__} is not a GPT-2: name one")
    if getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False):
        raise UserError("the model is quantized already: load the float checkpoint")
    if model.config.add_cross_attention:
        raise UserError("the model has cross-attention, which no scheme here covers: turn it off")
    config = ScratchConfig(name)
    scheme.replace(model, model.dtype, fill=True)
    config.sha256 = integrity.checksum(scheme.state(model, None) or model.state_dict())
    quantizer = ScratchQuantizer(config, pre_quantized=True)
    model.hf_quantizer, model.quantization_method, model.is_quantized = quantizer, METHOD, True
    model.config.quantization_config = config
    return _present(model).eval()


def _present(model: Any) -> Any:
    """What transformers asks of every model, where codes need another answer than its own."""
    for method in (num_parameters, resize_token_embeddings):
        setattr(model, method.__name__, MethodType(method, model))
    warn_if_slow(model)
    return model


def num_parameters(model: Any, only_trainable=False, exclude_embeddings=False) -> int:
    """The float model's number: transformers' own leaves codes out, which are no parameters."""
    count = type(model).num_parameters(model, only_trainable, exclude_embeddings)
    if not only_trainable:
        for layer in model.modules():
            embedding = exclude_embeddings and isinstance(layer, Embedding)
            if isinstance(layer, QuantizedLayer) and not embedding:
                count += layer.rows * layer.columns
    return count


def resize_token_embeddings(model: Any, new_num_tokens=None, *args, **options) -> Any:
    """Raises UserError: a row of codes cannot be made of the mean of others."""
    if new_num_tokens in (None, model.config.vocab_size) and not (args or options):
        return model.get_input_embeddings()
    raise UserError("the token embedding is quantized: resize the float model, or dequantize() it")


def warn_if_slow(model: PreTrainedModel) -> None:
    """Warn of int8 layers on a CPU that multiplies integers no faster than floats."""
    integers = any(isinstance(module, Int8Linear) for module in model.modules())
    if integers and model.device.type == "cpu" and product.path == "float32":
        slower = "int8 layers give the same results, but slower than FP32"
        warnings.warn(f"no AVX512-VNNI, nor AVX2 with a C++ compiler: {slower}", stacklevel=2)
