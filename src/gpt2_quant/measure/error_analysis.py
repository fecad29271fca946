"""Where the quantization error comes from: matrix by matrix, channel by channel, and in the end in
the predictions.

weights      for every matrix and weight scheme: signal-to-quantization-noise ratio 10 log10(sum w^2 / sum e^2) in dB, worst
             error over absmax, mean |e| over mean |w|, absmax over sigma (what one scale a tensor
             suffers from), the share of codes at the ends of their range
activations  outlier channels of every linear layer's input on real texts
effects      the model with one kind of matrix quantized and everything else float, on validation texts: accuracy,
             agreement with the float model, KL(float || quantized) in nats. Errors of matrices do
             not add up to errors of predictions; this says which of them reach the output
choices      refinements of the schemes with everything quantized, on the same texts: why each was taken or left

Files: results/quantization_error.csv, quantization_error_heatmap.png, activation_outliers.csv,
quantization_effect.csv, quantization_choices.csv. Validation texts only: nothing here has seen the
test split.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from .. import records
from ..cli import Settings
from ..data.tokens import Tokens, pad_batch, sorted_batches
from ..models.variants import W8A8
from ..quantization import affine, nf4
from ..quantization.fake import WEIGHT_SCHEMES, fake_quantize_weights, matrices
from ..quantization.quantizer import quantize_model
from ..quantization.schemes import NF4 as NF4_LAYERS
from ..quantization.schemes import W8A8 as W8A8_LAYERS
from . import activations
from .error_figures import heat_map

KINDS = ("wte", "wpe", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
TEXTS = {"cuda": 2000, "cpu": 128}  # validation texts for effects and choices, evenly spaced
OUTLIER_TEXTS = 256
SMOOTHING = 0.5


@dataclass
class Analysis:
    """The four tables; column names are those of the files."""

    weights: pd.DataFrame
    activations: pd.DataFrame
    effects: pd.DataFrame
    choices: pd.DataFrame

    def save(self, results_dir: Path) -> list[Path]:
        """Write tables and heat map; returns the paths."""
        paths = {
            "quantization_error.csv": self.weights,
            "activation_outliers.csv": self.activations,
            "quantization_effect.csv": self.effects,
            "quantization_choices.csv": self.choices,
        }
        for name, frame in paths.items():
            records.write_csv(results_dir / name, frame)
        figures = heat_map(self.weights, results_dir / "quantization_error_heatmap.png")
        return [*(results_dir / name for name in paths), *figures]

    def summary(self) -> str:
        """The short version, for the terminal."""
        sqnr = self.weights.pivot_table(
            index="scheme", columns="matrix", values="sqnr_db", sort=False
        )
        worst = self.activations.loc[self.activations["outlier_ratio"].idxmax()]
        effects = self.effects.pivot_table(
            index="part", columns="scheme", values="kl_nats", sort=False
        )
        return "\n".join(
            [
                "\nSQNR of the weights in dB, mean over layers",
                sqnr.round(1).to_string(),
                f"\nLargest activation outlier: layer {worst['layer']} {worst['matrix']}, channel {worst['top_channel']}, "
                f"{worst['outlier_ratio']:.1f} times the median channel",
                f"\nKL to the float model in nats, one kind of matrix quantized ({self.effects['n'].iloc[0]} texts)",
                effects.map("{:.1e}".format).to_string(),
            ]
        )


def analyse(model: nn.Module, tokens: Tokens, pad_id: int, settings: Settings) -> Analysis:
    """All four tables for the float classifier `model` and tokenized validation texts."""
    few = _batches(tokens, OUTLIER_TEXTS, settings.batch_size, pad_id)
    many = _batches(tokens, TEXTS[settings.device], settings.batch_size, pad_id)
    with torch.inference_mode(False), torch.no_grad():
        weights = weight_errors(model)
        statistics = activations.input_statistics(model, few)
        outliers = pd.DataFrame([_place(path) | item.row() for path, item in statistics.items()])
        absmax = {path: item.channel_absmax for path, item in statistics.items()}
        effects, choices = _effects(model, many), _choices(model, many, absmax)
    return Analysis(weights, outliers, effects, choices)


def weight_errors(model: nn.Module) -> pd.DataFrame:
    """One row for every matrix and weight scheme."""
    rows = []
    for path, (weight, layout) in tqdm(
        matrices(model).items(), desc="error of each matrix", unit="matrix"
    ):
        weight = weight.detach().float()
        out, columns = weight.shape if layout == "linear" else weight.shape[::-1]
        absmax, sigma = weight.abs().max().item(), weight.std().item()
        for scheme, read_back in WEIGHT_SCHEMES.items():
            result = read_back(weight, layout, path)
            error = result.values - weight
            rows.append(
                _place(path)
                | {
                    "scheme": scheme,
                    "out_features": out,
                    "in_features": columns,
                    "bits_per_weight": result.bits_per_weight,
                    "sqnr_db": activations.decibels(
                        weight.double().square().sum().item(), error.double().square().sum().item()
                    ),
                    "worst_relative_error": error.abs().max().item()
                    / max(absmax, affine.SMALLEST_SCALE),
                    "mean_relative_error": error.abs().mean().item()
                    / max(weight.abs().mean().item(), affine.SMALLEST_SCALE),
                    "absmax_over_sigma": absmax / max(sigma, affine.SMALLEST_SCALE),
                    "saturated_share": result.saturated_share,
                }
            )
    return pd.DataFrame(rows)


def _effects(model: nn.Module, batches: list[dict]) -> pd.DataFrame:
    """One kind of matrix at a time under each scheme, and all of them together."""

    schemes = {
        "int8 per tensor": lambda m, wanted: fake_quantize_weights(
            m, "int8 affine per tensor", wanted
        ),
        "W8A8": lambda m, wanted: W8A8_LAYERS.replace(m, m.dtype, True, wanted),
        "NF4": lambda m, wanted: NF4_LAYERS.replace(m, m.dtype, True, wanted),
    }
    variants = {}
    for scheme, apply in schemes.items():
        for kind in KINDS:
            variants[scheme, kind] = lambda m, apply=apply, kind=kind: apply(
                m, lambda path: path.endswith(f".{kind}")
            )
        variants[scheme, "all"] = lambda m, apply=apply: apply(m, lambda path: True)
    return _compare(model, batches, variants, ("scheme", "part"))


def _choices(model: nn.Module, batches: list[dict], channel_absmax: dict) -> pd.DataFrame:
    """Refinements of W8A8 and NF4, each with every matrix quantized. `taken` marks what the schemes
    do.
    """

    def smoothed(m: nn.Module) -> None:
        quantize_model(activations.smooth(m, channel_absmax, SMOOTHING), W8A8.key)

    def clipped(m: nn.Module) -> None:
        for path, (weight, layout) in matrices(m).items():
            weight.copy_(
                affine.quantize_tensor(weight, layout=layout, clip="mse", name=path).dequantize()
            )
        quantize_model(m, W8A8.key)

    def normal_float(fit: str, positions: str) -> Callable[[nn.Module], None]:
        def apply(m: nn.Module) -> None:
            for path, (weight, layout) in matrices(m).items():
                rows = weight.t() if layout == "conv1d" else weight
                in_int8 = path.endswith("wpe") and positions == "int8"
                read = affine.quantize_tensor(rows) if in_int8 else nf4.quantize(rows, fit=fit)
                weight.copy_(read.dequantize().t() if layout == "conv1d" else read.dequantize())

        return apply

    variants = {
        ("W8A8", "absmax scales", True): lambda m: quantize_model(m, W8A8.key),
        ("W8A8", "least-squares clipping of the weights", False): clipped,
        ("W8A8", f"SmoothQuant, alpha {SMOOTHING}", False): smoothed,
        ("NF4", "absmax scales, positions in NF4", False): normal_float("absmax", "nf4"),
        ("NF4", "least-squares scales, positions in NF4", False): normal_float("mse", "nf4"),
        ("NF4", "least-squares scales, positions in int8", True): normal_float("mse", "int8"),
    }
    return _compare(model, batches, variants, ("scheme", "choice", "taken"))


def _compare(
    model: nn.Module, batches: list[dict], variants: dict[tuple, Callable], columns: tuple
) -> pd.DataFrame:
    """Apply each variant to a copy of `model` and compare its predictions with the float model's."""
    labels = torch.cat([batch["labels"] for batch in batches]).numpy()
    reference = _log_probabilities(model, batches)
    rows = []
    for names, apply in tqdm(variants.items(), desc="effect on predictions", unit="variant"):
        changed = copy.deepcopy(model)
        apply(changed)
        found = _log_probabilities(changed, batches)
        rows.append(
            dict(zip(columns, names, strict=True))
            | {
                "accuracy": (found.argmax(1) == labels).mean(),
                "float_accuracy": (reference.argmax(1) == labels).mean(),
                "agreement": (found.argmax(1) == reference.argmax(1)).mean(),
                "kl_nats": (np.exp(reference) * (reference - found)).sum(1).mean(),
                "n": len(labels),
            }
        )
    return pd.DataFrame(rows)


def _log_probabilities(model: nn.Module, batches: list[dict]) -> np.ndarray:
    """Log-softmax of the logits, float64 `[texts, classes]`."""
    found = []
    for batch in batches:
        ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        found.append(torch.log_softmax(logits.double(), dim=-1))
    return torch.cat(found).cpu().numpy()


def _batches(tokens: Tokens, limit: int, batch_size: int, pad_id: int) -> list[dict]:
    """At most `limit` texts, evenly spaced over the split, in padded batches of like length."""
    rows = np.unique(np.linspace(0, len(tokens) - 1, min(limit, len(tokens))).astype(int))
    return [
        pad_batch(tokens, rows[group], pad_id)
        for group in sorted_batches(tokens.lengths[rows], batch_size)
    ]


def _place(path: str) -> dict:
    """Depth and kind of a matrix: `transformer.h.3.mlp.c_fc` is layer 3, `mlp.c_fc`; embeddings
    have no layer.
    """
    parts = path.removeprefix("transformer.").split(".")
    return (
        {"layer": int(parts[1]), "matrix": ".".join(parts[2:])}
        if parts[0] == "h"
        else {"layer": None, "matrix": parts[0]}
    )
