"""Predictions and scores during training, over all processes."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from ..data.tokens import Tokens
from ..measure import predictions, scores

BATCH_SIZE = 64


@dataclass(frozen=True)
class Scorer:
    """Every process must call each method, in the same order."""

    accelerator: Accelerator
    tokens: dict[str, Tokens]
    pad_id: int

    def predict(
        self, model, tokens: Tokens, batch_size: int, pad_id: int, description: str
    ) -> np.ndarray:
        """`predictions.predict`; each of P processes takes every P-th row, all get all logits."""
        accelerator, processes = self.accelerator, self.accelerator.num_processes
        if accelerator.device.type == "cuda":  # smaller leaves it idle; FP32 logits differ by 1e-6
            batch_size = max(batch_size, BATCH_SIZE)
        if processes == 1:
            return predictions.predict(model, tokens, batch_size, pad_id, description)
        own = np.arange(accelerator.process_index, len(tokens), processes)
        part = select_rows(tokens, own)
        answers = predictions.predict(model, part, batch_size, pad_id, description)
        # Zero but for its own rows.
        logits = np.zeros((len(tokens), answers.shape[1]), dtype=np.float32)
        logits[own] = answers
        total = accelerator.reduce(torch.from_numpy(logits).to(accelerator.device), "sum")
        return total.cpu().numpy()

    def _split(self, model, name: str, batch_size: int = BATCH_SIZE) -> np.ndarray:
        return self.predict(model, self.tokens[name], batch_size, self.pad_id, name)

    def validation(self, model) -> dict[str, float]:
        """Accuracy and mean cross-entropy (nats), without dropout."""
        labels, training = self.tokens["validation"].labels, model.training
        logits = self._split(model.eval(), "validation")
        model.train(training)
        loss = cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
        return {"accuracy": float((logits.argmax(axis=1) == labels).mean()), "loss": float(loss)}

    def test(self, model) -> dict[str, float]:
        logits = self._split(model, "test")
        found = scores.classification_scores(self.tokens["test"].labels, logits)
        return {name: found[name]["value"] for name in ("accuracy", "f1_macro")}

    def join(self, model, batch_size: int) -> None:
        """The other processes' part in the main one's `evaluate_variant`."""
        for name in ("validation", "test"):
            self._split(model, name, batch_size)


def select_rows(tokens: Tokens, rows: np.ndarray) -> Tokens:
    offsets = np.cumsum([0, *tokens.lengths[rows]], dtype=np.int64)
    flat = np.concatenate([tokens.flat[:0], *(tokens.row(i) for i in rows)])
    return Tokens(flat, offsets, tokens.labels[rows], *tokens.cut().values())
