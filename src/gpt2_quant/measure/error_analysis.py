"""Where the quantization error comes from: matrix by matrix, channel by channel, and in the end in
the predictions.

weights      signal-to-quantization-noise ratio 10 log10(sum w² / sum e²) of each matrix under each
             scheme; worst and mean error; absmax over sigma, which one scale suffers from
activations  outlier channels of every linear layer's input
effects      the model with one kind of matrix quantized: errors of matrices do not add up to errors
             of predictions; this says which reach the output
choices      refinements of the schemes with everything quantized: why each was taken or left

All on validation texts: nothing here has seen the test split.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GPT2PreTrainedModel

from .. import records
from ..cli import Settings
from ..data.tokens import Tokens
from ..models.variants import W8A8
from ..quantization import affine, schemes
from ..quantization.fake import WEIGHT_SCHEMES, fake_quantize_weights, matrices, read_back_clipped
from ..quantization.quantizer import quantize_model
from .activations import decibels, energy, input_statistics, smooth
from .figures import quantization_error
from .session import eager
from .timing import Batches, text_batches

KINDS = ("wte", "wpe", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
TEXTS = {"cuda": 2000, "cpu": 128}  # validation texts for effects and choices, evenly spaced
OUTLIER_TEXTS = 256
SMOOTHING = 0.5
Change = Callable[[GPT2PreTrainedModel], object]  # quantizes a model in place


@dataclass
class Analysis:
    """The four tables; column names are those of the files."""

    weights: pd.DataFrame
    activations: pd.DataFrame
    effects: pd.DataFrame
    choices: pd.DataFrame

    def save(self, results_dir: Path) -> list[Path]:
        """Write tables and heat map; returns the paths."""
        tables = {
            "quantization_error.csv": self.weights,
            "activation_outliers.csv": self.activations,
            "quantization_effect.csv": self.effects,
            "quantization_choices.csv": self.choices,
        }
        for name, frame in tables.items():
            records.write_csv(results_dir / name, frame)
        figures = quantization_error(self.weights, results_dir / "quantization_error_heatmap.png")
        return [*(results_dir / name for name in tables), *figures]

    def summary(self) -> str:
        """The short version, for the terminal."""
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
    """All four tables for the float classifier `model` and tokenized validation texts."""
    few = text_batches(tokens, OUTLIER_TEXTS, settings.batch_size, pad_id)
    many = text_batches(tokens, TEXTS[settings.device], settings.batch_size, pad_id)
    with torch.inference_mode(False), torch.no_grad():
        inputs = input_statistics(model, few)
        absmax = {path: found.channel_absmax for path, found in inputs.items()}
        return Analysis(
            weight_errors(model),
            pd.DataFrame([_position(path) | found.row() for path, found in inputs.items()]),
            _compare(model, many, _effects(), ("scheme", "part")),
            _compare(model, many, _choices(absmax), ("scheme", "choice", "taken")),
        )


def weight_errors(model: nn.Module) -> pd.DataFrame:
    """One row per matrix and weight scheme."""
    rows = []
    progress = tqdm(matrices(model).items(), desc="error of each matrix", unit="matrix")
    for path, weight in progress:
        weight = weight.detach().float()
        out, inputs = weight.shape
        absmax = weight.abs().max().item()
        for scheme, read_back in WEIGHT_SCHEMES.items():
            result = read_back(weight, path)
            error = result.values - weight
            ratios = {
                "worst_relative_error": (error.abs().max().item(), absmax),
                "mean_relative_error": (error.abs().mean().item(), weight.abs().mean().item()),
                "absmax_over_sigma": (absmax, weight.std().item()),
            }
            row = _position(path) | {"scheme": scheme, "out_features": out, "in_features": inputs}
            row["bits_per_weight"] = result.bits_per_weight
            row["sqnr_db"] = decibels(energy(weight), energy(error))
            for name, (top, bottom) in ratios.items():
                row[name] = top / max(bottom, affine.SMALLEST_SCALE)
            rows.append(row | {"saturated_share": result.saturated_share})
    return pd.DataFrame(rows)


def _effects() -> dict[tuple, Change]:
    """One kind of matrix at a time under each scheme, and all of them together."""
    how: dict[str, Callable] = {
        "int8 per tensor": partial(fake_quantize_weights, scheme="int8 affine per tensor"),
        "W8A8": partial(_in_layers, schemes.W8A8),
        "NF4": partial(_in_layers, schemes.NF4),
    }
    return {
        (scheme, kind): partial(quantize, wanted=partial(_is_of, kind))
        for scheme, quantize in how.items()
        for kind in (*KINDS, "all")
    }


def _in_layers(scheme: schemes.LayerScheme, model: GPT2PreTrainedModel, wanted) -> None:
    scheme.replace(model, model.dtype, True, wanted)


def _is_of(kind: str, path: str) -> bool:
    return kind == "all" or path.endswith(f".{kind}")


def _choices(channel_absmax: dict[str, Tensor]) -> dict[tuple, Change]:
    """Refinements of W8A8 and NF4, each with every matrix quantized; the last entry of a key says
    whether the schemes do it.
    """

    def w8a8(model) -> None:
        quantize_model(model, W8A8.key)

    def after_smoothing(model) -> None:
        w8a8(smooth(model, channel_absmax, SMOOTHING))

    def clipped(model) -> None:
        for weight in matrices(model).values():
            weight.copy_(read_back_clipped(weight))
        w8a8(model)

    def normal_float(scheme: str, positions: str) -> Change:
        def apply(model) -> None:
            fake_quantize_weights(model, scheme, lambda path: not path.endswith("wpe"))
            fake_quantize_weights(model, positions, lambda path: path.endswith("wpe"))

        return apply

    in_nf4 = normal_float("nf4", "nf4")
    least = normal_float("nf4 least squares", "nf4 least squares")
    least_and_int8 = normal_float("nf4 least squares", "int8 per channel")
    return {
        ("W8A8", "absmax scales", True): w8a8,
        ("W8A8", "least-squares clipping of the weights", False): clipped,
        ("W8A8", f"SmoothQuant, alpha {SMOOTHING}", False): after_smoothing,
        ("NF4", "absmax scales, positions in NF4", False): in_nf4,
        ("NF4", "least-squares scales, positions in NF4", False): least,
        ("NF4", "least-squares scales, positions in int8", True): least_and_int8,
    }


def _compare(
    model: GPT2PreTrainedModel, batches: Batches, changes: dict[tuple, Change], columns: tuple
) -> pd.DataFrame:
    """Apply each change to a copy of `model`; compare its predictions with the float model's."""
    labels = torch.cat([batch["labels"] for batch in batches]).numpy()
    reference = _log_probabilities(model, batches)
    rows = []
    for names, change in tqdm(changes.items(), desc="effect on predictions", unit="variant"):
        changed = copy.deepcopy(model)
        change(changed)
        found = _log_probabilities(changed, batches)
        row = dict(zip(columns, names, strict=True)) | {
            "accuracy": (found.argmax(1) == labels).mean(),
            "float_accuracy": (reference.argmax(1) == labels).mean(),
            "agreement": (found.argmax(1) == reference.argmax(1)).mean(),
            "kl_nats": (np.exp(reference) * (reference - found)).sum(1).mean(),
            "n": len(labels),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _log_probabilities(model: GPT2PreTrainedModel, batches: Batches) -> np.ndarray:
    """Log-softmax of the logits, float64 `[texts, classes]`."""
    inputs = [(batch["input_ids"], batch["attention_mask"]) for batch in batches]
    logits = [eager(model)(ids.to(model.device), mask.to(model.device)) for ids, mask in inputs]
    return log_softmax(torch.cat(logits).double().cpu().numpy(), axis=1)


def _position(path: str) -> dict:
    """`transformer.h.3.mlp.c_fc` is layer 3, `mlp.c_fc`; embeddings have no layer."""
    first, *rest = path.removeprefix("transformer.").split(".", 2)
    return {"layer": int(rest[0]), "matrix": rest[1]} if rest else {"layer": None, "matrix": first}
