"""One update, plainly: transformers' own model, autograd and torch's AdamW, spread over processes
by Accelerate.

*Several processes.* Process r of P takes rows r, r + P, r + 2P, … of every batch, so `--batch-size`
is the batch of all of them together. DDP averages gradients over processes; scaling each process's
*sum* of losses by P over the batch's rows makes that average the gradient of the batch's mean loss
exactly, also where the rows do not divide.

*Too little memory.* When the device runs out, Accelerate's `find_executable_batch_size` halves the
micro-batch until one fits, and gradients accumulate: the update is the same sum in another order.

*Dropout* is drawn from a generator seeded by (seed, update, process): nothing about it needs to be
in a checkpoint.
"""

from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from accelerate.utils.memory import should_reduce_batch_size
from torch.nn.functional import cross_entropy

from ..data.labels import LABELS
from ..data.tokens import Tokens, pad_batch
from ..measure import predictions
from .loop import BETAS, CLIP_NORM, EPS, Plan


class PlainStep:
    """The training step of every machine (see training.TrainingStep). `model` is trained in place."""

    def __init__(
        self, model: torch.nn.Module, tokens: Tokens, plan: Plan, accelerator: Accelerator
    ):
        self.tokens, self.plan, self.accelerator = tokens, plan, accelerator
        self.pad_id = model.config.pad_token_id
        self.model = accelerator.prepare(model.train())
        self.named = dict(accelerator.unwrap_model(self.model).named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.named.values(),
            lr=plan.learning_rate,
            betas=BETAS,
            eps=EPS,
            weight_decay=0.0,
            fused=True,
        )
        self.rates = plan.learning_rates(len(tokens))
        self.losses = torch.full((len(self.rates),), torch.nan, device=accelerator.device)
        self.micro_batch = -(-plan.batch_size // accelerator.num_processes)

    def begin_epoch(self, batches: list[np.ndarray]) -> None:
        self.batches = batches
        self.model.train()

    def update(self, number: int, batch: int) -> None:
        rows = self.batches[batch]
        draw = np.random.SeedSequence((self.plan.seed, number, self.accelerator.process_index))
        torch.manual_seed(int(draw.generate_state(1, np.uint64)[0]))
        try:
            loss = self._gradients(self.micro_batch, rows)
        except RuntimeError as fault:
            if (
                not should_reduce_batch_size(fault)
                or self.accelerator.num_processes > 1
                or self.micro_batch == 1
            ):
                raise
            loss = self._gradients_in_less_memory(rows)
        torch.nn.utils.clip_grad_norm_(self.named.values(), CLIP_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[number])
        self.optimizer.step()
        self.losses[number] = self.accelerator.reduce(loss, "mean")

    def _gradients(self, micro_batch: int, rows: np.ndarray) -> torch.Tensor:
        """Leave the gradient of the batch's mean loss in `.grad`; returns this process's share of
        that loss, times P.
        """
        self.optimizer.zero_grad(set_to_none=True)
        processes = self.accelerator.num_processes
        share = rows[self.accelerator.process_index :: processes]
        weight = processes / len(rows)
        if (
            len(share) == 0
        ):  # fewer rows than processes: this one still has to take part in DDP's exchange
            share, weight = rows[:1], 0.0
        total = torch.zeros((), device=self.accelerator.device)
        for start in range(0, len(share), micro_batch):
            exchange = start + micro_batch >= len(share)
            with nullcontext() if exchange else self.accelerator.no_sync(self.model):
                loss = weight * self._loss_sum(share[start : start + micro_batch])
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _loss_sum(self, rows: np.ndarray) -> torch.Tensor:
        """The sum of the rows' cross-entropies, in nats."""
        batch = pad_batch(self.tokens, rows, self.pad_id)
        if self.accelerator.device.type == "cuda":
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        batch = {
            name: tensor.to(self.accelerator.device, non_blocking=True)
            for name, tensor in batch.items()
        }
        labels = batch.pop("labels")
        return cross_entropy(
            self.model(**batch, use_cache=False).logits.float(), labels, reduction="sum"
        )

    def _gradients_in_less_memory(self, rows: np.ndarray) -> torch.Tensor:
        """`_gradients` with the micro-batch halved until it fits; later updates keep the size that
        did.
        """

        def halve() -> int:
            self.micro_batch //= 2
            return self.micro_batch

        attempt = find_executable_batch_size(
            self._gradients, starting_batch_size=halve(), reduce_batch_size_fn=halve
        )
        return attempt(rows)

    def tensors(self) -> dict[str, torch.Tensor]:
        result = {f"model.{name}": parameter.data for name, parameter in self.named.items()}
        for moment in ("exp_avg", "exp_avg_sq"):
            result |= {
                f"{moment}.{name}": self.optimizer.state[p][moment]
                for name, p in self.named.items()
            }
        return result

    def load(self, tensors: dict[str, torch.Tensor], update: int) -> None:
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(tensors[f"model.{name}"])
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(update), device=parameter.device),
                    **{
                        m: tensors[f"{m}.{name}"].to(parameter.device, copy=True)
                        for m in ("exp_avg", "exp_avg_sq")
                    },
                }

    def facts(self) -> dict:
        return {
            "step": "plain",
            "micro_batch": self.micro_batch,
            "processes": self.accelerator.num_processes,
        }


def gathered_predict(accelerator: Accelerator):
    """`predictions.predict` spread over all processes: each takes every P-th row, all end up with
    all logits.

    Every row is counted once, also where rows do not divide: nothing is padded or repeated. Each
    process lays its logits into an array of zeros and ones into an array of counts; both are summed
    over processes, and every count must be 1.
    """

    def predict(
        model, tokens: Tokens, batch_size: int, pad_id: int, description: str
    ) -> np.ndarray:
        if accelerator.num_processes == 1:
            return predictions.predict(model, tokens, batch_size, pad_id, description)
        own = np.arange(accelerator.process_index, len(tokens), accelerator.num_processes)
        answers = np.zeros((len(tokens), len(LABELS) + 1), dtype=np.float32)
        answers[own, :-1] = predictions.predict(
            model, select_rows(tokens, own), batch_size, pad_id, description
        )
        answers[own, -1] = 1
        answers = (
            accelerator.reduce(torch.from_numpy(answers).to(accelerator.device), "sum")
            .cpu()
            .numpy()
        )
        assert (answers[:, -1] == 1).all(), "a row was answered for by no process, or by two"
        return answers[:, :-1]

    return predict


def select_rows(tokens: Tokens, rows: np.ndarray) -> Tokens:
    """The given rows as a `Tokens` of their own, in the given order."""
    offsets = np.concatenate([[0], np.cumsum(tokens.lengths[rows])]).astype(np.int64)
    flat = np.concatenate([tokens.row(i) for i in rows]) if len(rows) else tokens.flat[:0]
    return Tokens(flat, offsets, tokens.labels[rows], tokens.truncated)
