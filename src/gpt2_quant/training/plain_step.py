"""One update, plainly: transformers' own model, autograd and torch's AdamW, through Accelerate.

*Several processes.* Process r of P takes rows r, r + P, r + 2P, … of every batch, so `--batch-size`
is the batch of all of them together. DDP averages gradients over processes; scaling each process's
*sum* of losses by P over the batch's rows makes that average the gradient of the batch's mean loss
exactly, also where the rows do not divide.

*Too little memory.* Accelerate's `find_executable_batch_size` halves the micro-batch until one
fits, and gradients accumulate: the update is the same sum in another order.

*Dropout* is drawn from a generator seeded by (seed, update, process), so checkpoints keep none.
"""

from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size
from accelerate.utils.memory import should_reduce_batch_size
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ..data.tokens import Tokens, pad_batch
from .loop import BETAS, CLIP_NORM, EPS, Plan


class PlainStep:
    """The training step of every machine (see loop.TrainingStep); trains `model` in place."""

    def __init__(
        self, model: PreTrainedModel, tokens: Tokens, plan: Plan, accelerator: Accelerator
    ):
        self.tokens, self.plan, self.accelerator = tokens, plan, accelerator
        self.pad_id = model.config.pad_token_id
        self.model = accelerator.prepare(model.train())
        self.named = dict(accelerator.unwrap_model(self.model).named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.named.values(), betas=BETAS, eps=EPS, weight_decay=0.0, fused=True
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
            alone = self.accelerator.num_processes == 1
            if not (should_reduce_batch_size(fault) and alone and self.micro_batch > 1):
                raise
            loss = self._gradients_in_less_memory(rows)
        torch.nn.utils.clip_grad_norm_(self.named.values(), CLIP_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[number])
        self.optimizer.step()
        self.losses[number] = self.accelerator.reduce(loss, "mean")

    def _gradients(self, micro_batch: int, rows: np.ndarray) -> torch.Tensor:
        """Leave the gradient of the batch's mean loss in `.grad`; returns this process's part of
        that loss, times P.
        """
        self.optimizer.zero_grad(set_to_none=True)
        processes = self.accelerator.num_processes
        own, weight = rows[self.accelerator.process_index :: processes], processes / len(rows)
        if len(own) == 0:  # fewer rows than processes: DDP's exchange still needs this one
            own, weight = rows[:1], 0.0
        total = torch.zeros((), device=self.accelerator.device)
        for start in range(0, len(own), micro_batch):
            last = start + micro_batch >= len(own)
            # Processes exchange gradients once, after the last micro-batch.
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = weight * self._loss_sum(own[start : start + micro_batch])
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _loss_sum(self, rows: np.ndarray) -> torch.Tensor:
        """The sum of the rows' cross-entropies, in nats."""
        batch, device = pad_batch(self.tokens, rows, self.pad_id), self.accelerator.device
        if device.type == "cuda":
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        logits = self.model(**batch, use_cache=False).logits
        return cross_entropy(logits.float(), labels, reduction="sum")

    def _gradients_in_less_memory(self, rows: np.ndarray) -> torch.Tensor:
        """`_gradients` with the micro-batch halved until it fits; later updates keep that size."""

        def halve() -> int:
            self.micro_batch //= 2
            return self.micro_batch

        return find_executable_batch_size(
            self._gradients, starting_batch_size=halve(), reduce_batch_size_fn=halve
        )(rows)

    def tensors(self) -> dict[str, torch.Tensor]:
        result = {f"model.{name}": parameter.data for name, parameter in self.named.items()}
        for moment in ("exp_avg", "exp_avg_sq"):
            for name, parameter in self.named.items():
                result[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
        return result

    def load(self, tensors: dict[str, torch.Tensor], update: int) -> None:
        for name, parameter in self.named.items():
            device = parameter.device
            parameter.data.copy_(tensors[f"model.{name}"])
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(update), device=device),
                "exp_avg": tensors[f"exp_avg.{name}"].to(device, copy=True),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(device, copy=True),
            }

    def facts(self) -> dict:
        processes = self.accelerator.num_processes
        return {"step": "plain", "micro_batch": self.micro_batch, "processes": processes}
