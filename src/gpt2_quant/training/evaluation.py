"""Predictions and scores while training, spread over all processes."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy

from ..data.labels import LABELS
from ..data.tokens import Tokens
from ..measure import predictions, scores

BATCH_SIZE = 64


@dataclass(frozen=True)
class Scorer:
    """Scores models on the tokenized splits. Every process calls each method, in the same order."""

    accelerator: Accelerator
    tokens: dict[str, Tokens]
    pad_id: int

    def predict(
        self, model, tokens: Tokens, batch_size: int, pad_id: int, description: str
    ) -> np.ndarray:
        """`predictions.predict`, each of P processes taking every P-th row; all get all logits.

        Nothing is padded or repeated where rows do not divide. Each process lays its logits into an
        array of zeros, and a one per row beside them; summed over processes every one must be 1.
        """
        accelerator = self.accelerator
        if accelerator.device.type == "cuda":  # idle with less; FP32 logits differ by 1e-6
            batch_size = max(batch_size, BATCH_SIZE)
        if accelerator.num_processes == 1:
            return predictions.predict(model, tokens, batch_size, pad_id, description)
        own = np.arange(accelerator.process_index, len(tokens), accelerator.num_processes)
        part = select_rows(tokens, own)
        answers = np.zeros((len(tokens), len(LABELS) + 1), dtype=np.float32)
        answers[own, :-1] = predictions.predict(model, part, batch_size, pad_id, description)
        answers[own, -1] = 1
        total = accelerator.reduce(torch.from_numpy(answers).to(accelerator.device), "sum")
        answers = total.cpu().numpy()
        assert (answers[:, -1] == 1).all(), "a row was answered for by no process, or by two"
        return answers[:, :-1]

    def validation(self, model) -> dict[str, float]:
        """Accuracy and mean cross-entropy (nats) on validation, dropout off for as long."""
        tokens, training = self.tokens["validation"], model.training
        logits = self.predict(model.eval(), tokens, BATCH_SIZE, self.pad_id, "validation")
        model.train(training)
        loss = cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(tokens.labels))
        accuracy = (logits.argmax(axis=1) == tokens.labels).mean()
        return {"accuracy": float(accuracy), "loss": float(loss)}

    def test(self, model) -> dict[str, float]:
        """Accuracy and macro F1 on test."""
        tokens = self.tokens["test"]
        logits = self.predict(model, tokens, BATCH_SIZE, self.pad_id, "test")
        found = scores.classification_scores(tokens.labels, logits)
        return {name: found[name]["value"] for name in ("accuracy", "f1_macro")}

    def join(self, model, batch_size: int) -> None:
        """What other processes do while the main one is in `evaluate_variant`: their rows of the
        same splits, in the same order.
        """
        for name in ("validation", "test"):
            self.predict(model, self.tokens[name], batch_size, self.pad_id, name)


def select_rows(tokens: Tokens, rows: np.ndarray) -> Tokens:
    """The given rows as a `Tokens` of their own, in the given order."""
    offsets = np.concatenate([[0], np.cumsum(tokens.lengths[rows])]).astype(np.int64)
    flat = np.concatenate([tokens.flat[:0], *(tokens.row(i) for i in rows)])
    return Tokens(flat, offsets, tokens.labels[rows], tokens.truncated)
