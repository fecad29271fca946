"""The fine-tuning loop: epochs of length-grouped batches, a validation after each, the best epoch
kept.

The loop is the same on every machine. What one update is (forward, backward, clipping, AdamW) is
the business of a *step* object with five methods, of which there are two: `PlainStep` runs
transformers' own model through Accelerate, on a CPU, on any GPU, on several; `FusedStep` replays
one captured CUDA graph a batch shape. Both take the same rows in the same order at the same
learning rates, and read and write the same checkpoints.

Settings, where libraries differ: AdamW with betas 0.9 and 0.999, eps 1e-8 and no weight decay
(transformers' Trainer has 0 too, torch's AdamW would have 0.01); gradients clipped to norm 1; the
rate rises linearly over the first 6% of the updates and falls linearly to zero (Devlin et al.,
arXiv 1810.04805, A.2: without the rise, GPT-2 with a fresh head can collapse to a constant answer).
GPT-2's dropout of 0.1 (embeddings, attention, residuals) stays on in training. Weights and moments
are FP32; under bf16 only the operands of matrix products and what they return are rounded.

The host never waits for the device inside an epoch, except where the progress bar wants a loss to
show.
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
from tqdm import tqdm

from ..data.tokens import Tokens, length_grouped_batches
from ..errors import UserError
from .checkpoints import Checkpoints

WARMUP_SHARE = 0.06
CLIP_NORM = 1.0
BETAS = (0.9, 0.999)
EPS = 1e-8
CURVE_POINTS = 500
REPORT_EVERY = {"cpu": 1, "cuda": 50}  # updates; on a GPU each report waits for the device


@dataclass(frozen=True)
class Plan:
    """What a training is to do. `max_steps` ends it early, and the learning rate then falls to zero
    there.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    precision: str  # "fp32" or "bf16"
    max_steps: int | None = None

    def updates(self, rows: int) -> int:
        """Updates in all, for a train split of so many rows; an incomplete last batch of an epoch
        is one too.
        """
        full = self.epochs * math.ceil(rows / self.batch_size)
        return min(full, self.max_steps or full)

    def learning_rates(self, rows: int) -> np.ndarray:
        """The rate of each update, float32 [updates]: linear warm-up, then linear decay; never
        zero.
        """
        total = self.updates(rows)
        warmup = max(1, math.ceil(WARMUP_SHARE * total))
        update = np.arange(total)
        share = np.minimum((update + 1) / warmup, (total - update) / max(1, total - warmup))
        return (self.learning_rate * share).astype(np.float32)


class TrainingStep(Protocol):
    """One update of the weights. `losses` is float32 [updates] on the device, NaN where an update
    is still to come.
    """

    losses: torch.Tensor

    def begin_epoch(self, batches: list[np.ndarray]) -> None:
        """Make ready for an epoch whose batches hold these rows of the train split."""

    def update(self, number: int, batch: int) -> None:
        """Update the weights for the `number`-th time (from 0) on this epoch's `batch`-th batch."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """`model.<name>`, `exp_avg.<name>`, `exp_avg_sq.<name>` of every parameter, all FP32, as
        they are now.

        The model itself is complete only after this: a step may put off what no update has needed
        yet.
        """

    def load(self, tensors: dict[str, torch.Tensor], update: int) -> None:
        """Continue from `tensors` after `update` updates."""

    def facts(self) -> dict:
        """What the record says of how updates were made."""


@dataclass
class Progress:
    """Where a training stands: the next update, its epoch, its batch in the epoch; and validations
    so far.
    """

    update: int = 0
    epoch: int = 0
    batch: int = 0
    validations: list[dict] = field(default_factory=list)
    training_s: float = 0.0
    resumed_from: list[int] = field(default_factory=list)

    @property
    def best(self) -> dict | None:
        """The validation with the highest accuracy; among equals the one with the lowest loss."""
        return max(self.validations, key=lambda v: (v["accuracy"], -v["loss"]), default=None)


def train(
    step: TrainingStep,
    tokens: Tokens,
    plan: Plan,
    validate: Callable[[], dict],
    checkpoints: Checkpoints,
    *,
    device: str,
    main_process: bool = True,
    log: Callable[[dict, int], None] = lambda values, update: None,
) -> tuple[dict[str, torch.Tensor], Progress]:
    """Train to the end of the plan, from the newest checkpoint where there is one.

    `validate()` returns {"accuracy", "loss"} of the weights as they are. Returns the best epoch's
    weights by parameter name (CPU, FP32) and the progress. Raises UserError when a loss is not
    finite, KeyboardInterrupt after an interrupt (the update in progress is finished and a
    checkpoint written first), OSError when a checkpoint cannot be written.
    """
    rates = plan.learning_rates(len(tokens))
    total, lengths = len(rates), tokens.lengths
    progress, best_weights = Progress(), {}
    if found := checkpoints.load():
        tensors, state = found
        progress = Progress(**state)
        progress.resumed_from.append(progress.update)
        best_weights = _take(tensors, "best.") or _take(tensors, "model.")
        step.losses.copy_(tensors.pop("losses"))
        step.load(tensors, progress.update)
        if main_process:
            print(
                f"going on after update {progress.update} of {total}, from the checkpoint in {checkpoints.folder}"
            )

    def save() -> None:
        tensors = step.tensors() | {"losses": step.losses}
        if (
            progress.best and progress.best["update"] < progress.update
        ):  # else the best weights are the ones at hand
            tensors |= {f"best.{name}": tensor for name, tensor in best_weights.items()}
        if main_process:
            checkpoints.save(
                progress.update, tensors, {k: v for k, v in vars(progress).items() if k != "update"}
            )

    bar = tqdm(
        total=total,
        initial=progress.update,
        unit="update",
        desc="fine-tuning",
        mininterval=1,
        disable=not main_process,
    )
    checked = progress.update
    with bar, interrupt_after_update() as interrupted:
        while (
            progress.update < total or progress.batch
        ):  # a checkpoint may lie between the last update and its validation
            batches = length_grouped_batches(lengths, plan.batch_size, plan.seed, progress.epoch)
            batches = batches[: total - progress.update + progress.batch]
            step.begin_epoch(batches)
            started = time.perf_counter()
            while progress.batch < len(batches):
                step.update(progress.update, progress.batch)
                progress.update += 1
                progress.batch += 1
                stop = interrupted()
                due = stop or checkpoints.due()
                if (
                    due
                    or progress.update % REPORT_EVERY[device] == 0
                    or progress.batch == len(batches)
                ):
                    loss = _finite_loss(step.losses, checked, progress, batches, rates)
                    rate = float(rates[progress.update - 1])
                    bar.set_postfix(loss=f"{loss:.3f}", rate=f"{rate:.1e}", refresh=False)
                    bar.update(progress.update - bar.n)
                    log({"train/loss": loss, "train/learning_rate": rate}, progress.update)
                    checked = progress.update
                if due:
                    # Into the checkpoint goes the time of all updates that are in it, so that a
                    # resumed run's speed is its own.
                    now = time.perf_counter()
                    progress.training_s, started = progress.training_s + now - started, now
                    save()
                if stop:
                    checkpoints.wait()
                    raise KeyboardInterrupt
            progress.training_s += time.perf_counter() - started
            epoch_of_last, progress.epoch, progress.batch = progress.epoch, progress.epoch + 1, 0
            tensors = (
                step.tensors()
            )  # before validating: this brings weights that lag behind up to date
            scores = validate()
            progress.validations.append(
                {"epoch": epoch_of_last + 1, "update": progress.update, **scores}
            )
            log({f"validation/{name}": value for name, value in scores.items()}, progress.update)
            if progress.best is progress.validations[-1]:
                # A copy: the next update writes into the tensors that hold these weights.
                best_weights = {
                    name: t.detach().clone().cpu() for name, t in _take(tensors, "model.").items()
                }
            stop = interrupted()
            if stop or progress.update < total:
                save()
            if stop:
                checkpoints.wait()
                raise KeyboardInterrupt
    checkpoints.wait()
    return best_weights, progress


def _take(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _finite_loss(
    losses: torch.Tensor,
    checked: int,
    progress: Progress,
    batches: list[np.ndarray],
    rates: np.ndarray,
) -> float:
    """The mean loss of the updates since `checked`. Raises UserError at the first that is not
    finite.
    """
    recent = losses[checked : progress.update].cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(recent))
    if len(bad):
        update = checked + int(bad[0])
        rows = batches[progress.batch - (progress.update - update)].tolist()
        raise UserError(
            f"the loss of update {update + 1} is {recent[bad[0]]} (learning rate {rates[update]:.2e}, train rows {rows}): "
            "give a lower --learning-rate, or --precision fp32; the last checkpoint is kept"
        )
    return float(recent.mean())


@contextmanager
def interrupt_after_update() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM wait until the update in progress is whole; a second one interrupts at
    once.

    Yields a function that tells whether one has come.
    """
    received = []

    def remember(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {
        number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def curve(losses: torch.Tensor, plan: Plan, rows: int, validations: list[dict]) -> pd.DataFrame:
    """The training curve, a row a window of updates: step, train_loss (mean over the window),
    learning_rate, and at the end of each epoch validation_loss and validation_accuracy. At most 500
    windows, so that the file stays small.
    """
    rates, values = plan.learning_rates(rows), losses.cpu().numpy().astype(np.float64)
    window = math.ceil(len(values) / CURVE_POINTS)
    ends = sorted(
        {*range(window, len(values) + 1, window), len(values), *(v["update"] for v in validations)}
    )
    frame = pd.DataFrame({"step": ends})
    frame["train_loss"] = [
        values[start:end].mean() for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    frame["learning_rate"] = [rates[end - 1] for end in ends]
    for name in ("loss", "accuracy"):
        frame[f"validation_{name}"] = frame["step"].map({v["update"]: v[name] for v in validations})
    return frame
