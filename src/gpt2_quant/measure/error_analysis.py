"""Where the quantization error comes from, on validation texts alone.

weights      SQNR 10 log10(sum w² / sum e²), worst and mean error of each matrix under each scheme;
             absmax over sigma, which one scale suffers from
activations  outlier channels of every linear layer's input
effects      predictions with one kind of matrix quantized
choices      predictions under NF4's refinements, everything quantized
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm
from transformers import GPT2PreTrainedModel

from .. import records
from ..cli import Settings
from ..data.tokens import Tokens
from ..quantization import affine, fp8, schemes
from ..quantization.fake import WEIGHT_SCHEMES, fake_quantize_weights, matrices
from .activations import decibels, energy, input_statistics
from .figures import quantization_error
from .paired import divergence
from .session import eager
from .timing import Batches, text_batches

KINDS = ("wte", "wpe", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
TEXTS = {"cuda": 2000, "cpu": 128}  # validation texts, evenly spaced
OUTLIER_TEXTS = 256
Change = Callable[[GPT2PreTrainedModel], object]


@dataclass
class Analysis:
    weights: pd.DataFrame
    activations: pd.DataFrame
    effects: pd.DataFrame
    choices: pd.DataFrame

    def save(self, results_dir: Path) -> list[Path]:
        tables = {
            "quantization_error": self.weights,
            "activation_outliers": self.activations,
            "quantization_effect": self.effects,
            "quantization_choices": self.choices,
        }
        for name, frame in tables.items():
            records.write_csv(results_dir / f"{name}.csv", frame)
        drawn = quantization_error(self.weights, results_dir / "quantization_error_heatmap.png")
        return [*(results_dir / f"{name}.csv" for name in tables), *drawn]

    def summary(self) -> str:
        sqnr = self.weights.pivot_table("sqnr_db", "scheme", "matrix", sort=False)
        kl = self.effects.pivot_table("kl_nats", "part", "scheme", sort=False)
        worst = self.activations.nlargest(1, "outlier_ratio").to_dict("records")[0]
        return (
            f"\nSQNR of the weights in dB, mean over layers\n{sqnr.round(1).to_string()}\n"
            f"\nLargest activation outlier: layer {worst['layer']} {worst['matrix']}, channel "
            f"{worst['top_channel']}, {worst['outlier_ratio']:.1f} times the median channel\n"
            "\nKL to the float model in nats, one kind of matrix quantized "
            f"({self.effects['n'].iloc[0]} texts)\n{kl.map('{:.1e}'.format).to_string()}"
        )


def analyse(
    model: GPT2PreTrainedModel, tokens: Tokens, pad_id: int, settings: Settings
) -> Analysis:
    """All four tables, from the float classifier and tokenized validation texts."""
    few = text_batches(tokens, OUTLIER_TEXTS, settings.batch_size, pad_id)
    many = text_batches(tokens, TEXTS[settings.device], settings.batch_size, pad_id)
    with torch.inference_mode(False), torch.no_grad():
        inputs = input_statistics(model, few)
        return Analysis(
            weight_errors(model),
            pd.DataFrame([_position(path) | found.row() for path, found in inputs.items()]),
            _compare(model, many, _effects(), ("scheme", "part")),
            _compare(model, many, CHOICES, ("scheme", "choice", "taken")),
        )


def weight_errors(model: nn.Module) -> pd.DataFrame:
    rows = []
    progress = tqdm(matrices(model).items(), desc="error of each matrix", unit="matrix")
    for path, weight in progress:
        weight = weight.detach().float()
        out, inputs = weight.shape
        absmax = weight.abs().max()
        for scheme, read_back in WEIGHT_SCHEMES.items():
            result = read_back(weight, path)
            error = result.values - weight
            rows.append(_position(path) | {
                "scheme": scheme, "out_features": out, "in_features": inputs,
                "bits_per_weight": result.bits_per_weight,
                "sqnr_db": decibels(energy(weight), energy(error)),
                "worst_relative_error": _ratio(error.abs().max(), absmax),
                "mean_relative_error": _ratio(error.abs().mean(), weight.abs().mean()),
                "absmax_over_sigma": _ratio(absmax, weight.std()),
                "saturated_share": result.saturated_share,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _ratio(top: torch.Tensor, bottom: torch.Tensor) -> float:
    return top.item() / max(bottom.item(), affine.SMALLEST_SCALE)


def _effects() -> dict[tuple, Change]:
    def in_layers(scheme: schemes.LayerScheme, model: GPT2PreTrainedModel, wanted) -> None:
        scheme.replace(model, model.dtype, True, wanted)

    affine_int8 = "int8 affine per tensor"
    how: dict[str, Callable] = {affine_int8: partial(fake_quantize_weights, scheme=affine_int8)}
    layers = {"W8A8": schemes.W8A8, "FP8": fp8.SCHEME, "NF4": schemes.NF4}
    how |= {name: partial(in_layers, scheme) for name, scheme in layers.items()}
    return {
        (name, kind): partial(quantize, wanted=partial(_is_of, kind))
        for name, quantize in how.items()
        for kind in (*KINDS, "all")
    }


def _is_of(kind: str, path: str) -> bool:
    return kind == "all" or path.endswith(f".{kind}")


def _normal_float(model: GPT2PreTrainedModel, scheme: str, positions: str) -> None:
    fake_quantize_weights(model, scheme, lambda path: not _is_of("wpe", path))
    fake_quantize_weights(model, positions, partial(_is_of, "wpe"))


CHOICES: dict[tuple, Change] = {  # scheme, choice, whether the scheme does it
    ("NF4", choice, taken): partial(_normal_float, scheme=scheme, positions=positions)
    for choice, taken, scheme, positions in (
        ("absmax scales, positions in NF4", False, "nf4", "nf4"),
        ("least-squares scales, positions in NF4", False, "nf4 least squares", "nf4 least squares"),
        ("least-squares scales, positions in int8", True, "nf4 least squares", "int8 per channel"),
    )
}


def _compare(
    model: GPT2PreTrainedModel, batches: Batches, changes: dict[tuple, Change], columns: tuple
) -> pd.DataFrame:
    labels = torch.cat([batch["labels"] for batch in batches]).numpy()
    reference = _logits(model, batches)
    rows = []
    for names, change in tqdm(changes.items(), desc="effect on predictions", unit="variant"):
        changed = copy.deepcopy(model)
        change(changed)
        found = _logits(changed, batches)
        rows.append(dict(zip(columns, names, strict=True)) | {
            "accuracy": (found.argmax(1) == labels).mean(),
            "float_accuracy": (reference.argmax(1) == labels).mean(),
            "agreement": (found.argmax(1) == reference.argmax(1)).mean(),
            "kl_nats": divergence(reference, found).mean(),
            "n": len(labels),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _logits(model: GPT2PreTrainedModel, batches: Batches) -> np.ndarray:
    inputs = [(batch["input_ids"], batch["attention_mask"]) for batch in batches]
    logits = [eager(model)(ids.to(model.device), mask.to(model.device)) for ids, mask in inputs]
    return torch.cat(logits).cpu().numpy()


def _position(path: str) -> dict:
    """`transformer.h.3.mlp.c_fc` is layer 3, `mlp.c_fc`; embeddings have no layer."""
    first, *rest = path.removeprefix("transformer.").split(".", 2)
    return {"layer": int(rest[0]), "matrix": rest[1]} if rest else {"layer": None, "matrix": first}
