"""The variants of the comparison: the only file that names them.

A new one is an entry here and an object with the two functions of `Method`:

    Variant("int4_scratch", "INT4", script=2, method="gpt2_quant.quantization.int4:SCHEME", …)

Methods are loaded when used: this file needs the standard library alone.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple, Protocol

from ..quantization import SCHEMES


class Published(NamedTuple):
    accuracy: float
    size_mb: float
    time_ms: float
    compression: float


class Method(Protocol):
    """How a variant comes from the FP32 checkpoint."""

    def quantize(self, key: str, model, folder: Path, dtype) -> Any:
        """A copy of the FP32 `model` from `folder`, float parts in `dtype`, in eval mode, on the
        same device, ready to save.
        """

    def facts(self, model) -> dict:
        """What a record keeps of the model. Raises RuntimeError where it is not as meant."""

    # Where its time can say nothing, `untimed(device) -> str` too: the reason, or "".


@dataclass(frozen=True)
class Variant:
    key: str
    label: str
    script: int  # the script that makes it
    colour: str
    marker: str
    description: str  # a sentence for its model card
    method: str = ""  # "module:object" of a `Method`; "": weights are only cast to `floats`
    # dtype of what is not quantized; fast: float16 on CUDA, else float32
    floats: Literal["float32", "float16", "fast"] = "fast"
    computes_on_codes: bool = False  # the forward pass does, not on floats made from them
    no_best_mode: str = ""  # why nothing faster than eager exists
    # Arithmetic that a device must have: without, its row would be another's (loading.unavailable).
    needs: Literal["", "float16", "tf32"] = ""
    reads_texts: bool = False  # no GPT-2, so no tokens either
    in_onnx: bool = False  # computed by ONNX Runtime; made where --export onnx asks for it
    published: Published | None = None
    own_folder: str | None = None

    @property
    def folder(self) -> str:
        """Below models/. Without a method it is the baseline's."""
        return self.own_folder or (self.key if self.method else BASELINE.folder)

    @property
    def first_file(self) -> str:
        """A file without which its folder is no model."""
        if self.in_onnx:
            return "model.onnx"
        return "vocabulary.json" if self.reads_texts else "config.json"

    @property
    def outside_torch(self) -> bool:
        """Then it is on the CPU, wherever the others are."""
        return self.reads_texts or self.in_onnx

    @property
    def by_hand(self) -> bool:
        """Whether its method is a scheme of our transformers plug-in."""
        return bool(self.method) and self.script == 2

    @property
    def script_path(self) -> str:
        """From the root of the repository."""
        return SCRIPTS[self.script]

    @property
    def how(self) -> Method:
        return resolve_name(self.method)

    def untimed(self, device: str) -> str:
        """Why its time on `device` would say nothing; "" where it does say something."""
        ask = getattr(self.how, "untimed", None) if self.method else None
        return ask(device) if ask else ""


SCRIPTS = {
    1: "src/1_baseline_finetuning.py",
    2: "src/2_quantization_scratch.py",
    3: "src/3_bitsandbytes_quant.py",
}

# Colour-blind safe (Okabe & Ito, Paul Tol): grey unquantized, warm by hand, cool bitsandbytes.
BASELINE = Variant(
    "baseline", "Baseline FP32", 1, "#222222", "o", "All weights in float32.",
    floats="float32", own_folder="baseline_gpt2", published=Published(0.9459, 474.71, 94.13, 1.00),
)  # fmt: skip
FP16 = Variant(
    "baseline_fp16", "Baseline FP16", 3, "#9a9a9a", "s", "The baseline's weights in float16.",
    floats="float16", needs="float16",
)  # fmt: skip
TF32 = Variant(
    "baseline_tf32", "Baseline TF32", 3, "#4f5f6f", "p",
    "The baseline's weights in float32, multiplied in TF32 on tensor cores.",
    floats="float32", needs="tf32",
)  # fmt: skip
INT8 = Variant(
    "int8_scratch", "INT8 Scratch", 2, "#e69f00", "^",
    "Each parameter is an int8 tensor with one scale and zero-point, read back into floats.",
    "gpt2_quant.quantization.stored_int8:SCHEME",
    floats="float32", published=Published(0.9459, 118.68, 96.00, 4.00),
)  # fmt: skip
W8A8 = Variant(
    "int8_scratch_w8a8", "INT8 Scratch W8A8", 2, "#d55e00", "D",
    "Weights are int8 per output channel, activations int8 per token; biases, norms, head float.",
    "gpt2_quant.quantization.schemes:W8A8", computes_on_codes=True,
)  # fmt: skip
FP8 = Variant(
    "fp8_scratch", "FP8 Scratch", 2, "#cc6677", ">",
    "Weights are FP8 (e4m3) per output channel, activations FP8 per token; biases, norms, head "
    "float.",
    "gpt2_quant.quantization.fp8:SCHEME", computes_on_codes=True,
)  # fmt: skip
NF4 = Variant(
    "nf4_scratch", "NF4 Scratch", 2, "#882255", "v",
    "Weights and token embeddings are NF4, positions int8; biases, norms and head float.",
    "gpt2_quant.quantization.schemes:NF4", computes_on_codes=True,
)  # fmt: skip
LLM_INT8 = Variant(
    "int8_bitsandbytes", "INT8 BitsAndBytes", 3, "#56b4e9", "P",
    "The four linear layers of each block in LLM.int8(), everything else in float16.",
    "gpt2_quant.models.bitsandbytes:LLM_INT8", computes_on_codes=True,
    no_best_mode="best mode: none, since LLM.int8() asks the device in every layer",
    published=Published(0.9459, 168.36, 247.94, 2.82),
)  # fmt: skip
LIBRARY_NF4 = Variant(
    "nf4_bitsandbytes", "NF4 BitsAndBytes", 3, "#0072b2", "X",
    "The four linear layers of each block in doubly quantized NF4, everything else in float16.",
    "gpt2_quant.models.bitsandbytes:NF4", computes_on_codes=True,
    no_best_mode="best mode: none, the library is run as it is",
    published=Published(0.9458, 127.86, 56.37, 3.71),
)  # fmt: skip
TFIDF = Variant(
    "tfidf", "TF-IDF + LR", 1, "#7711dd", "H", "Words and word pairs, and logistic regression.",
    floats="float32", own_folder="tfidf", reads_texts=True,
)  # fmt: skip


# The row of a variant's model as an ONNX file, by the variant's key.
ONNX = {
    v.key: Variant(
        f"{v.key}_onnx", label, v.script, colour, marker, f"{v.label} as an ONNX file.",
        floats="float32", own_folder=f"{v.folder}/onnx", in_onnx=True,
    )
    for v, label, colour, marker in (
        (BASELINE, "ONNX FP32", "#442288", "1"), (INT8, "ONNX INT8", "#aacc66", "2"),
        (W8A8, "ONNX W8A8", "#cc0044", "3"), (NF4, "ONNX NF4", "#440044", "4"),
    )
}  # fmt: skip

VARIANTS: dict[str, Variant] = {}


def register(variant: Variant) -> None:
    """Add a row after those that are there; its scheme becomes loadable."""
    VARIANTS[variant.key] = variant
    if variant.by_hand:
        SCHEMES[variant.key] = variant.method


_torch = BASELINE, FP16, TF32, INT8, W8A8, FP8, NF4, LLM_INT8, LIBRARY_NF4
for _variant in (*_torch, TFIDF, *ONNX.values()):
    register(_variant)


def made_by(script: int) -> list[Variant]:
    """But for ONNX rows, made on demand."""
    return [v for v in VARIANTS.values() if v.script == script and not v.in_onnx]


_SPARE = list(zip(("#117733", "#cc79a7", "#332288", "#999933", "#44aa99"), "<*hd8", strict=True))


def style(keys: Collection[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by key; other keys get the spare ones, by order of name."""
    styles = {key: (v.colour, v.marker) for key, v in VARIANTS.items()}
    styles |= zip(sorted(set(keys) - set(styles)), cycle(_SPARE), strict=False)
    return {key: styles[key] for key in keys}
