"""What quantization costs the language model, token by token: the bridge between the two tasks.

Accuracy on four classes hides damage: a classifier reads one position and its argmax is robust. A
language model is asked for a whole distribution at every position. For each weight scheme, on the
same held-out text, beside perplexity:

    KL = mean over tokens of sum_v p(v) (log p(v) - log q(v)),   p the FP32 model's distribution, q the quantized one's, in nats
    top-1 agreement = share of tokens at which both would write the same word

KL is what the change costs in expectation under the original's own beliefs, and it is at least 0
whichever way perplexity moves: a quantized model with a *better* perplexity on some text is still
another model. All schemes read each batch in turn, so that the FP32 logits are computed once and
never stored. A scheme's row is kept in the cache under a hash of the weights, the texts, all of
`src/` and the package versions: no change of the quantization meets an old row.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ...cache import Cache, content_key
from ...models.loading import float_dtype, has_half_arithmetic
from ...models.variants import BASELINE, VARIANTS
from ...records import code_version
from ..perplexity import LanguageModel
from ..scored import version

NUMBERS = [
    "perplexity",
    "ratio",
    "ratio_low",
    "ratio_high",
    "kl_mean",
    "kl_low",
    "kl_high",
    "kl_p99",
    "top1_agreement",
    "tokens",
]
RESAMPLES = 1000


def cached_cost_table(
    reference: LanguageModel, folder: Path, texts: Sequence[str], cache: Cache
) -> tuple[pd.DataFrame, dict[str, str]]:
    """`cost_table` of FP32 and every scheme, with rows of the same weights, texts and code read
    from `cache`.

    `folder` is where the FP32 checkpoint lies (for bitsandbytes). Returns the table, and scheme ->
    why it is missing.
    """
    schemes, missing = list(VARIANTS), {}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as fault:
        missing = {
            key: f"bitsandbytes cannot be imported ({fault})"
            for key in schemes
            if VARIANTS[key].method and not VARIANTS[key].by_hand
        }
        schemes = [key for key in schemes if key not in missing]

    def measure(positions: list[int]) -> np.ndarray:
        wanted = [schemes[i] for i in positions]
        models = quantized_language_models(
            reference, folder, [key for key in wanted if key != BASELINE.key]
        )
        return (
            cost_table(reference, models, texts)
            .set_index("scheme")
            .loc[wanted, NUMBERS]
            .to_numpy(float)
        )

    packages = ("torch", "transformers") if missing else ("torch", "transformers", "bitsandbytes")
    code = "|".join(
        (
            "quantization cost",
            code_version()["source_sha256"],
            *map(version, packages),
            reference.device,
        )
    )
    keys = [content_key(code, scheme, reference.signature, *texts) for scheme in schemes]
    table = pd.DataFrame(cache.rows("quantization_cost", keys, measure), columns=NUMBERS).astype(
        {"tokens": int}
    )
    table.insert(0, "label", [VARIANTS[key].label for key in schemes])
    table.insert(0, "scheme", schemes)
    return table, missing


def quantized_language_models(
    reference: LanguageModel, folder: Path, schemes: Sequence[str]
) -> dict[str, LanguageModel]:
    """Scheme -> language model. `folder` is where the FP32 checkpoint lies (for bitsandbytes).

    FP16 keeps float16's rounding of the weights and computes in float32 where the device has no
    float16 arithmetic.
    """
    device, models = reference.device, {}
    for key in schemes:
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
    reference: LanguageModel, schemes: dict[str, LanguageModel], texts: Sequence[str]
) -> pd.DataFrame:
    """One row a scheme: perplexity, its ratio to FP32 with a 95% interval, mean and 99th percentile
    of KL, top-1 agreement, tokens.

    Intervals are bootstrapped over texts, since the tokens of one text are not independent.
    """
    ids = reference.encode(texts)
    statistics = {
        key: np.zeros((len(texts), 4)) for key in (BASELINE.key, *schemes)
    }  # nll, kl, agreeing, tokens
    kl_tokens: dict[str, list[np.ndarray]] = {key: [] for key in statistics}
    streams = {key: model.scored_positions(ids, None) for key, model in schemes.items()}
    for places, logits, targets in reference.scored_positions(ids, "FP32 and quantized"):
        owner = np.concatenate([np.full(count, row) for row, _, count in places])
        log_p = torch.log_softmax(logits, dim=-1)
        batches = {
            BASELINE.key: log_p,
            **{key: torch.log_softmax(next(stream)[1], dim=-1) for key, stream in streams.items()},
        }
        for key, log_q in batches.items():
            nll = -log_q.gather(1, targets[:, None])[:, 0]
            kl = (
                torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none")
                .sum(1)
                .clamp_min(0)
            )
            agree = (log_q.argmax(1) == log_p.argmax(1)).double()
            columns = (
                torch.stack((nll.double(), kl.double(), agree, torch.ones_like(agree)), dim=1)
                .cpu()
                .numpy()
            )
            np.add.at(statistics[key], owner, columns)
            kl_tokens[key].append(columns[:, 1])
    drawn = np.random.default_rng(0).integers(len(texts), size=(RESAMPLES, len(texts)))
    base_sums = statistics[BASELINE.key][drawn].sum(1)
    base = _means(statistics[BASELINE.key].sum(0))
    rows = []
    for key, values in statistics.items():
        sums = values[drawn].sum(1)
        ratios = np.exp((sums[:, 0] - base_sums[:, 0]) / sums[:, 3])
        nll, kl, agree = _means(values.sum(0))
        kl_low, kl_high = np.quantile(sums[:, 1] / sums[:, 3], (0.025, 0.975))
        low, high = np.quantile(ratios, (0.025, 0.975))
        rows.append(
            {
                "scheme": key,
                "label": VARIANTS[key].label,
                "perplexity": np.exp(nll),
                "ratio": np.exp(nll - base[0]),
                "ratio_low": low,
                "ratio_high": high,
                "kl_mean": kl,
                "kl_low": kl_low,
                "kl_high": kl_high,
                "kl_p99": np.quantile(np.concatenate(kl_tokens[key]), 0.99),
                "top1_agreement": agree,
                "tokens": int(values[:, 3].sum()),
            }
        )
    return pd.DataFrame(rows)


def _means(sums: np.ndarray) -> tuple[float, float, float]:
    """NLL, KL and agreement a token from the sums of `cost_table`."""
    return tuple(float(value) for value in sums[:3] / sums[3])
