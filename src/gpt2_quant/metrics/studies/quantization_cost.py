"""What quantization costs the language model, token by token.

An argmax is robust, so accuracy hides damage; a language model gives a whole distribution at every
position of the same held-out text:

    KL = mean over tokens of sum_v p(v) (log p(v) - log q(v)),  in nats,
         p the FP32 model's distribution, q the quantized one's
    top-1 agreement = fraction of tokens at which both have the same argmax

KL shows a change even where perplexity *improves*. All variants read each batch in turn: no logits
are kept.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import kl_div
from tqdm import tqdm

from ...errors import UserError
from ...models.bitsandbytes import BitsAndBytes, require
from ...models.loading import float_dtype, has_half_arithmetic
from ...models.variants import BASELINE, VARIANTS
from ..perplexity import LanguageModel
from .resampling import draws, interval

NUMBERS = [
    "perplexity", "ratio", "ratio_low", "ratio_high", "kl_mean", "kl_low", "kl_high", "kl_p99",
    "top1_agreement", "tokens",
]  # fmt: skip
RESAMPLES = 1000


def cost_of_all(
    reference: LanguageModel, folder: Path, texts: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """(`cost_table` of every variant, key -> why it is missing); `folder` holds `reference`."""
    missing = {}
    try:
        require()
    except UserError as fault:
        of_library = [v for v in VARIANTS.values() if v.method and isinstance(v.how, BitsAndBytes)]
        missing = {variant.key: str(fault) for variant in of_library}
    left_out = {BASELINE.key, *missing}
    keys = [
        key
        for key, variant in VARIANTS.items()
        # The study is of weights, and TF32's are FP32's.
        if key not in left_out and not variant.outside_torch and variant.needs != "tf32"
    ]
    return cost_table(reference, quantized_language_models(reference, folder, keys), texts), missing


def quantized_language_models(
    reference: LanguageModel, folder: Path, keys: Iterable[str]
) -> dict[str, LanguageModel]:
    """Variant -> language model, each made from `reference`, whose checkpoint lies in `folder`."""
    models = {}
    for key in keys:
        variant = VARIANTS[key]
        dtype = float_dtype(variant, reference.device)
        if variant.method:
            model = variant.how.quantize(key, reference.model, folder, dtype)
        else:
            model = copy.deepcopy(reference.model).to(dtype)
            if not has_half_arithmetic(reference.device):
                model.float()  # rounded to float16 all the same
        models[key] = replace(reference, model=model.eval())
    return models


def cost_table(
    reference: LanguageModel, models: dict[str, LanguageModel], texts: Sequence[str]
) -> pd.DataFrame:
    """One row of NUMBERS per variant, FP32 first. Intervals are bootstrapped over texts: the tokens
    of one text are not independent.
    """
    ids = reference.encode(texts)
    text = np.repeat(np.arange(len(ids)), [len(sequence) for sequence in ids])
    drawn = draws(len(texts), RESAMPLES)
    base = base_drawn = None
    rows = []
    for key, costs in _token_costs(reference, models, ids).items():
        summed = costs.assign(tokens=1.0).groupby(text).sum()
        per_text = summed.reindex(range(len(texts)), fill_value=0).to_numpy()
        sums, sums_drawn = per_text.sum(0), per_text[drawn].sum(1)  # [4], [RESAMPLES, 4]
        nll, kl, agreement, _ = sums / sums[3]
        nll_drawn, kl_drawn, *_ = (sums_drawn / sums_drawn[:, 3:]).T
        if base is None:
            base, base_drawn = nll, nll_drawn
        ratio = np.exp(nll - base), *interval(np.exp(nll_drawn - base_drawn))
        kl_p99 = costs["kl"].quantile(0.99)
        numbers = [np.exp(nll), *ratio, kl, *interval(kl_drawn), kl_p99, agreement, len(costs)]
        rows.append([key, VARIANTS[key].label, *numbers])
    return pd.DataFrame(rows, columns=["scheme", "label", *NUMBERS])


def _token_costs(
    reference: LanguageModel, models: dict[str, LanguageModel], ids: list[list[int]]
) -> dict[str, pd.DataFrame]:
    """Variant -> one row per token of all texts: nll, kl (nats), agree (0, 1)."""
    n = sum(map(len, ids))
    costs = {key: np.empty((n, 3)) for key in (BASELINE.key, *models)}
    streams = {key: model.scored_tokens(ids) for key, model in models.items()}
    bar = tqdm(total=n, desc="FP32 and quantized", unit="token", disable=len(ids) < 50, leave=False)
    for tokens, logits, targets in reference.scored_tokens(ids):
        log_p = torch.log_softmax(logits, dim=-1)
        for key, rows in costs.items():
            log_q = torch.log_softmax(next(streams[key])[1], -1) if key in streams else log_p
            nll = -log_q.gather(1, targets[:, None])[:, 0]
            kl = kl_div(log_q, log_p, log_target=True, reduction="none").sum(1).clamp_min(0)
            agree = log_q.argmax(1) == log_p.argmax(1)
            rows[tokens] = torch.stack([nll, kl, agree], dim=1).double().cpu().numpy()
        bar.update(len(tokens))
    bar.close()
    return {key: pd.DataFrame(rows, columns=["nll", "kl", "agree"]) for key, rows in costs.items()}
