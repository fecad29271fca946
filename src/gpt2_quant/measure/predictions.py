"""Run a classifier over a split once, and keep its logits: every score and every comparison comes
from that file.

`results/predictions/<key>.parquet` has a row a text: `id` (its number in the split), `label` (0–3)
and `logit_0` … `logit_3` (float32). The validation split's stands beside it as
`<key>.validation.parquet`.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from ..data.labels import LABELS
from ..data.tokens import Tokens, pad_batch, sorted_batches
from ..errors import UserError
from ..records import atomic_path

LOGITS = [f"logit_{i}" for i in range(len(LABELS))]


def predict(model, tokens: Tokens, batch_size: int, pad_id: int, description: str) -> np.ndarray:
    """Logits of every row of `tokens`, in the split's order: float32 [n, 4].

    `model` is called as `model(input_ids=…, attention_mask=…)` and answers with `.logits` [B, 4];
    they are cast to float32, so that no score is computed from half-precision values. Raises
    UserError when a logit is not finite.
    """
    import torch
    from tqdm import tqdm

    device = next(model.parameters()).device
    logits = torch.full((len(tokens), len(LABELS)), torch.nan, device=device)
    with torch.inference_mode(), tqdm(total=len(tokens), desc=description, unit="text") as progress:
        for rows in sorted_batches(tokens.lengths, batch_size):
            batch = pad_batch(tokens, rows, pad_id)
            answer = model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
            )
            logits[torch.from_numpy(rows).to(device)] = answer.logits.float()
            progress.update(len(rows))
    result = logits.cpu().numpy()
    if not np.isfinite(result).all():
        bad = int((~np.isfinite(result).all(axis=1)).sum())
        raise UserError(
            f"{description}: the model answers {bad} of {len(result)} texts with NaN or infinity; make it again"
        )
    return result


def predictions_path(results_dir: Path, key: str) -> Path:
    """Where the predictions of a variant are kept."""
    return results_dir / "predictions" / f"{key}.parquet"


def save_predictions(results_dir: Path, key: str, labels: np.ndarray, logits: np.ndarray) -> Path:
    """Write labels [n] and logits float32 [n, 4] as parquet, atomically."""
    columns = {"id": np.arange(len(labels)), "label": np.asarray(labels, dtype=np.int64)}
    columns |= {name: logits[:, i].astype(np.float32) for i, name in enumerate(LOGITS)}
    path = predictions_path(results_dir, key)
    with atomic_path(path) as temporary:
        pd.DataFrame(columns).to_parquet(temporary, index=False)
    return path


def load_predictions(results_dir: Path, key: str) -> pd.DataFrame:
    """Columns id, label, logit_0 … logit_3. Raises UserError where the file is missing or damaged."""
    path = predictions_path(results_dir, key)
    try:
        return pd.read_parquet(path)[["id", "label", *LOGITS]]
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: run the script that makes {key} again, with --overwrite"
        ) from None
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(
            f"{path} is damaged ({type(fault).__name__}): run the script that makes {key} with --overwrite"
        ) from fault
