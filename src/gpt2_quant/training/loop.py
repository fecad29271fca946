"""The fine-tuning loop: epochs of length-grouped batches, a validation after each, the best kept.

A *step* makes one update: `PlainStep` on any machine, `FusedStep` on CUDA GPUs.

AdamW has no weight decay (torch's default is 0.01). The rate rises linearly over the first 6% of
updates, then falls linearly to zero (Devlin et al., arXiv 1810.04805, A.2: without warm-up, GPT-2
with a fresh head can collapse to a constant answer). Dropout is GPT-2's 0.1. Weights and moments
are FP32; under bf16 only operands and results of matrix products are rounded.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..data.tokens import Tokens, length_grouped_batches
from ..errors import UserError
from .checkpoints import Checkpoints

WARMUP_FRACTION = 0.06
CLIP_NORM = 1.0
BETAS = (0.9, 0.999)
EPS = 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq")
CURVE_POINTS = 500
REPORT_EVERY = {"cpu": 1, "cuda": 50}  # updates


@dataclass(frozen=True)
class Plan:
    """`max_steps` ends training early, the learning rate still falling to zero."""

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    precision: str  # "fp32" or "bf16"
    max_steps: int | None = None

    def updates(self, rows: int) -> int:
        """Updates for `rows` train rows."""
        full = self.epochs * math.ceil(rows / self.batch_size)
        return min(full, self.max_steps or full)

    def learning_rates(self, rows: int) -> np.ndarray:
        """Rate of each update, float32 [updates]; never zero."""
        total = self.updates(rows)
        warmup = max(1, math.ceil(WARMUP_FRACTION * total))
        update = np.arange(total)
        fraction = np.minimum((update + 1) / warmup, (total - update) / max(1, total - warmup))
        return (self.learning_rate * fraction).astype(np.float32)


class TrainingStep(Protocol):
    """`losses`: float32 [updates], NaN for those still to come."""

    losses: torch.Tensor

    def begin_epoch(self, batches: list[np.ndarray]) -> None:
        """Prepare batches of these train rows."""

    def update(self, number: int, batch: int) -> None:
        """Update `number` (from 0), on this epoch's `batch`-th batch."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """`model.<name>` and `<moment>.<name>`, FP32. Only this brings the model up to date: a step
        may defer what no update has read.
        """
        ...

    def load(self, tensors: dict[str, torch.Tensor], update: int) -> None:
        """Continue from `tensors` after `update` updates."""

    def facts(self) -> dict:
        """What the record says of how updates were made."""
        ...


@dataclass
class Progress:
    """One validation per completed epoch."""

    update: int = 0
    validations: list[dict] = field(default_factory=list)
    training_s: float = 0.0
    resumed_from: list[int] = field(default_factory=list)

    @property
    def best(self) -> dict:
        """Highest accuracy, then lowest loss; {} before the first."""
        return max(self.validations, key=lambda v: (v["accuracy"], -v["loss"]), default={})


@dataclass
class Training:
    """One training, resumed from the newest checkpoint. `validate()` returns {"accuracy", "loss"}
    of the current weights.
    """

    step: TrainingStep
    tokens: Tokens
    plan: Plan
    validate: Callable[[], dict]
    checkpoints: Checkpoints
    accelerator: Accelerator

    def run(self) -> tuple[dict[str, torch.Tensor], Progress]:
        """The best epoch's weights by parameter name (CPU, FP32), and the progress.

        Raises UserError for a loss that is not finite, KeyboardInterrupt after an interrupt (once
        update and checkpoint are finished), and as Checkpoints.wait does.
        """
        self.rates = self.plan.learning_rates(len(self.tokens))
        self.progress, self.best_weights = self._resumed()
        self.reported = self.progress.update
        self.bar = tqdm(
            total=len(self.rates), initial=self.reported, unit="update", desc="fine-tuning",
            mininterval=1, disable=not self.accelerator.is_main_process,
        )  # fmt: skip
        per_epoch = math.ceil(len(self.tokens) / self.plan.batch_size)
        with self.bar, interrupt_after_update() as self.interrupted:
            for first in range(0, len(self.rates), per_epoch)[len(self.progress.validations) :]:
                self._train_epoch(first)
                self._validate()
        self.checkpoints.wait()
        return self.best_weights, self.progress

    def _resumed(self) -> tuple[Progress, dict[str, torch.Tensor]]:
        found = self.checkpoints.load()
        if not found:
            return Progress(), {}
        tensors, state = found
        progress = Progress(**state)
        progress.resumed_from.append(progress.update)
        self.step.losses.copy_(tensors.pop("losses"))
        self.step.load(tensors, progress.update)
        where = f"update {progress.update} of {len(self.rates)}"
        folder = self.checkpoints.folder
        self.accelerator.print(f"going on after {where}, from the checkpoint in {folder}")
        return progress, _take(tensors, "best.") or _take(tensors, "model.")

    def _train_epoch(self, first: int) -> None:
        """Make the updates left: none where the checkpoint lies between the last one and the
        validation.
        """
        progress, plan, epoch = self.progress, self.plan, len(self.progress.validations)
        batches = length_grouped_batches(self.tokens.lengths, plan.batch_size, plan.seed, epoch)
        batches = batches[: len(self.rates) - first]
        self.step.begin_epoch(batches)
        report_every = REPORT_EVERY[self.accelerator.device.type]
        self.clock = time.perf_counter()
        while progress.update < first + len(batches):
            self.step.update(progress.update, progress.update - first)
            progress.update += 1
            save = self._asked_to_save()
            last = progress.update == first + len(batches)
            if save or last or progress.update % report_every == 0:
                self._report(batches, first)
            if save:
                self._save()

    def _asked_to_save(self) -> bool:
        """On all processes alike: rows that are behind are brought up to date at the same updates.
        They agree where they wait for one another anyway. The one that writes knows when.
        """
        accelerator = self.accelerator
        asked = self.interrupted() or (accelerator.is_main_process and self.checkpoints.due())
        if accelerator.num_processes == 1:
            return asked
        if self.progress.update % REPORT_EVERY[accelerator.device.type]:
            return False
        anyone = torch.tensor(float(asked), device=accelerator.device)
        return bool(accelerator.reduce(anyone, "sum"))

    def _validate(self) -> None:
        progress, validations = self.progress, self.progress.validations
        tensors = self.step.tensors()  # first: brings deferred weights up to date
        scores = self.validate()
        validations.append({"epoch": len(validations) + 1, "update": progress.update, **scores})
        values = {f"validation/{name}": value for name, value in scores.items()}
        self.accelerator.log(values, progress.update)
        if progress.best is validations[-1]:
            # The next update overwrites these.
            best = _take(tensors, "model.")
            self.best_weights = {name: t.detach().clone().cpu() for name, t in best.items()}
        if self.interrupted() or progress.update < len(self.rates):
            self._save()

    def _report(self, batches: list[np.ndarray], first: int) -> None:
        """Log the mean loss since the last report. Raises UserError unless all are finite."""
        progress = self.progress
        losses = self.step.losses[self.reported : progress.update].cpu().numpy()
        now = time.perf_counter()
        progress.training_s, self.clock = progress.training_s + now - self.clock, now
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            self.checkpoints.wait()  # one may still be on its way to the disk
            update = self.reported + int(bad[0])
            rate, rows = self.rates[update], batches[update - first].tolist()
            fault = f"the loss of update {update + 1} is {losses[bad[0]]}"
            where = f"(learning rate {rate:.2e}, train rows {rows})"
            mend = "give a lower --learning-rate, or --precision fp32"
            raise UserError(f"{fault} {where}: {mend}; the last checkpoint is kept")
        loss, rate = float(losses.mean()), float(self.rates[progress.update - 1])
        self.bar.set_postfix(loss=f"{loss:.3f}", rate=f"{rate:.1e}", refresh=False)
        self.bar.update(len(losses))
        values = {"train/loss": loss, "train/learning_rate": rate}
        self.accelerator.log(values, progress.update)
        self.reported = progress.update

    def _save(self) -> None:
        tensors = self.step.tensors() | {"losses": self.step.losses}
        # Right after the best validation the best weights are the model's.
        if self.progress.best.get("update", self.progress.update) < self.progress.update:
            tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        if self.accelerator.is_main_process:
            self.checkpoints.save(tensors, vars(self.progress))
        if self.interrupted():
            self.checkpoints.wait()
            raise KeyboardInterrupt


def _take(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@contextmanager
def interrupt_after_update() -> Iterator[Callable[[], bool]]:
    """Defer a first Ctrl-C or SIGTERM; yields a function that tells whether one came."""
    received: list[int] = []

    def remember(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, remember) for number in signals}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def curve(losses: torch.Tensor, plan: Plan, rows: int, validations: list[dict]) -> pd.DataFrame:
    """One row per window of updates (about 500 at most): step, train_loss (mean over the window),
    learning_rate; at each epoch's end validation_loss, validation_accuracy.
    """
    values = losses.cpu().numpy().astype(np.float64)
    window = math.ceil(len(values) / CURVE_POINTS)
    validated = pd.DataFrame(validations).set_index("update")[["loss", "accuracy"]]
    ends = np.union1d([*range(window, len(values), window), len(values)], validated.index)
    frame = pd.DataFrame({"step": ends})
    frame["train_loss"] = [part.mean() for part in np.split(values, ends[:-1])]
    frame["learning_rate"] = plan.learning_rates(rows)[ends - 1]
    return frame.join(validated.add_prefix("validation_"), on="step")
