"""What quantization costs the language model, token by token: the bridge between the two tasks.

Accuracy on four classes hides damage: a classifier reads one position and its argmax is robust. A
language model is asked for a whole distribution at every position. For each variant, on the same
held-out text, beside perplexity:

    KL = mean over tokens of sum_v p(v) (log p(v) - log q(v)),  in nats,
         p the FP32 model's distribution, q the quantized one's
    top-1 agreement = fraction of tokens at which both would write the same word

KL is at least 0 whichever way perplexity moves: a quantized model with a *better* perplexity on
some text is still another model. All variants read each batch in turn, so that the FP32 logits are
computed once and never stored. A variant's row is cached under a hash of the weights, the texts,
all of `src/` and the package versions: no change of the quantization meets an old row.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import kl_div

from ...cache import Cache, content_key
from ...errors import UserError
from ...models.bitsandbytes import BitsAndBytes, require
from ...models.loading import float_dtype, has_half_arithmetic
from ...models.variants import BASELINE, VARIANTS
from ...records import code_version
from ..perplexity import LanguageModel
from ..scored import version
from .resampling import draws, interval

NUMBERS = [
    "perplexity", "ratio", "ratio_low", "ratio_high", "kl_mean", "kl_low", "kl_high", "kl_p99",
    "top1_agreement", "tokens",
]  # fmt: skip
RESAMPLES = 1000


def cached_cost_table(
    reference: LanguageModel, folder: Path, texts: Sequence[str], cache: Cache
) -> tuple[pd.DataFrame, dict[str, str]]:
    """`cost_table` of every variant, with rows of the same weights, texts and code read from
    `cache`; `folder` holds the FP32 checkpoint. Returns the table, and key -> why it is missing.
    """
    missing, packages = {}, ["torch", "transformers"]
    try:
        require()
        packages.append("bitsandbytes")
    except UserError as fault:
        of_library = [v for v in VARIANTS.values() if v.method and isinstance(v.how, BitsAndBytes)]
        missing = {variant.key: str(fault) for variant in of_library}
    schemes = [key for key in VARIANTS if key not in missing]

    def measure(positions: list[int]) -> np.ndarray:
        wanted = [schemes[i] for i in positions]
        quantized = [key for key in wanted if key != BASELINE.key]
        models = quantized_language_models(reference, folder, quantized)
        table = cost_table(reference, models, texts).set_index("scheme")
        return table.loc[wanted, NUMBERS].to_numpy(float)

    code = [code_version()["source_sha256"], *map(version, packages), reference.device]
    signature = "|".join(["quantization cost", *code])
    keys = [content_key(signature, scheme, reference.signature, *texts) for scheme in schemes]
    table = pd.DataFrame(cache.rows("quantization_cost", keys, measure), columns=NUMBERS)
    table.insert(0, "scheme", schemes)
    table.insert(1, "label", [VARIANTS[key].label for key in schemes])
    return table.astype({"tokens": int}), missing


def quantized_language_models(
    reference: LanguageModel, folder: Path, keys: Iterable[str]
) -> dict[str, LanguageModel]:
    """Variant -> language model, each made from `reference`, whose checkpoint lies in `folder`.

    FP16 keeps float16's rounding of the weights and computes in float32 where the device has no
    float16 arithmetic.
    """
    device, models = reference.device, {}
    for key in keys:
        variant = VARIANTS[key]
        dtype = float_dtype(variant, device)
        if variant.method:
            model = variant.how.quantize(key, reference.model, folder, dtype)
        else:
            model = copy.deepcopy(reference.model).to(dtype)
            model = model if has_half_arithmetic(device) else model.float()
        models[key] = replace(reference, model=model.eval())
    return models


def cost_table(
    reference: LanguageModel, models: dict[str, LanguageModel], texts: Sequence[str]
) -> pd.DataFrame:
    """One row per variant, FP32 first: perplexity, its ratio to FP32 with a 95% interval, mean and
    99th percentile of KL, top-1 agreement, tokens.

    Intervals are bootstrapped over texts, since the tokens of one text are not independent.
    """
    tokens = _token_costs(reference, models, texts)
    drawn = draws(len(texts), RESAMPLES)
    base = base_drawn = None
    rows = []
    for key, costs in tokens.items():
        per_text = costs.groupby("text").sum().reindex(range(len(texts)), fill_value=0).to_numpy()
        sums, sums_drawn = per_text.sum(0), per_text[drawn].sum(1)  # [4], [RESAMPLES, 4]
        nll, kl, agreement, _ = sums / sums[3]
        nll_drawn, kl_drawn, *_ = (sums_drawn / sums_drawn[:, 3:]).T
        if base is None:
            base, base_drawn = nll, nll_drawn
        ratio = np.exp(nll - base), *interval(np.exp(nll_drawn - base_drawn))
        kl_p99 = costs["kl"].quantile(0.99)
        numbers = [np.exp(nll), *ratio, kl, *interval(kl_drawn), kl_p99, agreement, int(sums[3])]
        rows.append([key, VARIANTS[key].label, *numbers])
    return pd.DataFrame(rows, columns=["scheme", "label", *NUMBERS])


def _token_costs(
    reference: LanguageModel, models: dict[str, LanguageModel], texts: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Variant -> one row per token: text (its number), nll, kl (nats), agree (0, 1), tokens (1)."""
    ids = reference.encode(texts)
    batches: dict[str, list[pd.DataFrame]] = {key: [] for key in (BASELINE.key, *models)}
    streams = {key: model.scored_positions(ids, None) for key, model in models.items()}
    for windows, logits, targets in reference.scored_positions(ids, "FP32 and quantized"):
        text = np.repeat([row for row, _, _ in windows], [count for _, _, count in windows])
        log_p = torch.log_softmax(logits, dim=-1)
        for key, parts in batches.items():
            log_q = log_p
            if key in streams:
                log_q = torch.log_softmax(next(streams[key])[1], dim=-1)
            kl = kl_div(log_q, log_p, log_target=True, reduction="none").sum(1).clamp_min(0)
            columns = {
                "nll": -log_q.gather(1, targets[:, None])[:, 0],
                "kl": kl,
                "agree": log_q.argmax(1) == log_p.argmax(1),
            }
            numbers = {name: column.double().cpu().numpy() for name, column in columns.items()}
            parts.append(pd.DataFrame({"text": text, **numbers, "tokens": 1.0}))
    return {key: pd.concat(parts, ignore_index=True) for key, parts in batches.items()}
