"""The hand-written schemes as a quantization method of transformers.

After `import gpt2_quant.quantization.quantizer`,

    AutoModelForSequenceClassification.from_pretrained("models/<folder of a scheme>")

returns a running quantized model, and an unquantized GPT-2 is quantized while it loads with
`quantization_config=ScratchConfig(<name of a scheme>)`. It works for any GPT-2 head.

`config.json` keeps the scheme, the version of this layout and a sha256 over all codes and scales.
transformers loads tensors of the wrong shape into quantized models without a word, so shapes,
dtypes and checksum are checked here.
"""

import warnings
from pkgutil import resolve_name
from typing import Any

import torch
from transformers import GPT2PreTrainedModel, PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import UserError
from . import SCHEMES, integrity, product
from .layers import Int8Linear

METHOD = "gpt2_quant"
FORMAT_VERSION = 1


def scheme_named(name: str) -> Any:
    """The `schemes.Scheme` called `name` in the registry. Raises UserError for none."""
    if name not in SCHEMES:
        known = ", ".join(SCHEMES)
        raise UserError(f"unknown quantization scheme {name!r}: the schemes are {known}")
    return resolve_name(SCHEMES[name])


@register_quantization_config(METHOD)
class ScratchConfig(QuantizationConfigMixin):
    """What `config.json` says about a folder: scheme, layout version, sha256 over codes and scales
    (None: not yet).
    """

    def __init__(
        self, scheme: str, format_version: int = FORMAT_VERSION, sha256: str | None = None, **_
    ):
        self.__dict__["quant_method"] = METHOD  # typed by transformers as one of its own
        self.scheme = scheme
        self.format_version = format_version
        self.sha256 = sha256


@register_quantizer(METHOD)
class ScratchQuantizer(HfQuantizer):
    """transformers' hooks for all schemes."""

    quantization_config: ScratchConfig

    def validate_environment(self, *args, **kwargs):
        """Raise UserError for a scheme or layout version that this code does not know."""
        config = self.quantization_config
        self.scheme = scheme_named(config.scheme)
        if config.format_version != FORMAT_VERSION:
            raise UserError(
                f"the folder was quantized in layout version {config.format_version}, this code "
                f"reads version {FORMAT_VERSION}: quantize again with python "
                "src/2_quantization_scratch.py --overwrite"
            )

    def _process_model_before_weight_loading(
        self, model, dtype=None, checkpoint_files=None, **kwargs
    ):
        if self.pre_quantized:
            self.scheme.replace(model, dtype or torch.get_default_dtype(), fill=False)
            integrity.check_files(model, checkpoint_files or [], self.quantization_config.sha256)

    def _process_model_after_weight_loading(self, model, **kwargs):
        if not self.pre_quantized:
            return quantize_model(model, self.quantization_config.scheme)
        self.scheme.finish(model)
        warn_if_slow(model)
        return model

    def get_state_dict_and_metadata(self, model):
        """The tensors to save."""
        return scheme_named(self.quantization_config.scheme).state(
            model, self.quantization_config.sha256
        ), {}

    def is_serializable(self):
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def is_gpt2(model: Any) -> bool:
    """Whether `model` is one of transformers' GPT-2 classes, with whatever head."""
    return isinstance(model, GPT2PreTrainedModel)


def quantize_model(model: Any, name: str) -> Any:
    """Quantize a float GPT-2 in place and return it, ready to run and to `save_pretrained`.

    The scheme is the one called `name`; float parts keep the model's dtype. Raises UserError for a
    model that is no GPT-2, is quantized already or holds NaN or infinity, and an unknown scheme.
    """
    scheme = scheme_named(name)
    if not is_gpt2(model):
        kind = type(model).__name__
        raise UserError(f"{kind} is not a GPT-2: these schemes know its layers only")
    if getattr(getattr(model, "hf_quantizer", None), "pre_quantized", False):
        raise UserError("the model is quantized already: load the float checkpoint instead")
    config = ScratchConfig(name)
    scheme.replace(model, model.dtype, fill=True)
    config.sha256 = integrity.checksum(scheme.state(model, None) or model.state_dict())
    quantizer = ScratchQuantizer(config, pre_quantized=True)
    model.hf_quantizer, model.quantization_method, model.is_quantized = quantizer, METHOD, True
    model.config.quantization_config = config
    warn_if_slow(model)
    return model.eval()


def warn_if_slow(model: PreTrainedModel) -> None:
    """Say that a machine has no fast integers on its CPU (`product.path`)."""
    integers = any(isinstance(module, Int8Linear) for module in model.modules())
    if integers and model.device.type == "cpu" and product.path == "float32":
        warnings.warn(
            "neither AVX512-VNNI nor AVX2 with a C++ compiler was found: int8 layers give the same "
            "results, but slower than FP32",
            stacklevel=2,
        )
