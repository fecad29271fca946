"""A classifier's logits over a split: every score comes from their file.

`results/predictions/<key>.parquet` (validation: `<key>.validation.parquet`) has a row per text:
`id` (its number in the split), `label` (0 … C-1) and `logit_0` … (float32), one per class.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..data.tokens import Tokens, pad_batch, sorted_batches
from ..errors import UserError
from ..records import atomic_path


def predict(model, tokens: Tokens, batch_size: int, pad_id: int, description: str) -> np.ndarray:
    """Logits of `tokens`, in order: float32 [n, C]. Raises UserError for NaN or infinity."""
    device = next(model.parameters()).device

    def function(ids, mask):
        return model(input_ids=ids, attention_mask=mask).logits

    return run_over(function, device, tokens, batch_size, pad_id, description)


def run_over(
    function: Callable, device, tokens: Tokens, batch_size: int, pad_id: int, description: str
) -> np.ndarray:
    """`predict` by `function(input_ids, attention_mask)`, which takes both on `device`."""
    import torch  # here, since script 5 reads predictions without torch

    order, answers = sorted_batches(tokens.lengths, batch_size), []
    with torch.inference_mode(), tqdm(total=len(tokens), desc=description, unit="text") as progress:
        for rows in order:
            batch = pad_batch(tokens, rows, pad_id)
            answer = function(batch["input_ids"].to(device), batch["attention_mask"].to(device))
            answers.append(answer.float())
            progress.update(len(rows))
    result = torch.cat(answers).cpu().numpy()[np.argsort(np.concatenate(order))]
    bad = int((~np.isfinite(result).all(axis=1)).sum())
    if bad:
        fault = f"the model answers {bad} of {len(result)} texts with NaN or infinity"
        raise UserError(f"{description}: {fault}; make it again")
    return result


def predictions_path(results_dir: Path, key: str) -> Path:
    return results_dir / "predictions" / f"{key}.parquet"


def save_predictions(results_dir: Path, key: str, labels: np.ndarray, logits: np.ndarray) -> Path:
    """labels [n], logits float32 [n, C]; written atomically."""
    texts = pd.DataFrame({"id": np.arange(len(labels)), "label": np.asarray(labels, np.int64)})
    frame = texts.join(pd.DataFrame(logits.astype(np.float32)).add_prefix("logit_"))
    path = predictions_path(results_dir, key)
    with atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)
    return path


def load_logits(results_dir: Path, key: str) -> np.ndarray:
    """float32 [n, classes]. Raises UserError as `load_predictions`."""
    return load_predictions(results_dir, key).filter(like="logit_").to_numpy(np.float32)


def load_predictions(results_dir: Path, key: str) -> pd.DataFrame:
    """Raises UserError for a missing or damaged file."""
    path = predictions_path(results_dir, key)
    mend = f"run the script that makes {key} again, with --overwrite"
    try:
        frame = pd.read_parquet(path)
        n_classes = max(2, frame.columns.str.startswith("logit_").sum())
        return frame[["id", "label", *(f"logit_{i}" for i in range(n_classes))]]
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {mend}") from None
    except (OSError, ValueError, KeyError) as fault:
        raise UserError(f"{path} is damaged ({type(fault).__name__}): {mend}") from fault
