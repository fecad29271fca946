"""One update with transformers' model, autograd and torch's AdamW, through Accelerate.

*Several processes.* Process r of P takes rows r, r + P, … of every batch. DDP averages gradients;
each process's *sum* of losses, times P over the batch's rows, makes that average the gradient of
the batch's mean loss, also where P does not divide the rows.

*One GPU.* Launching kernels one by one takes longer than running them, so forward and backward of
a shape, once met, are replayed as a CUDA graph; gradients add up in the same memory each time.

*Out of memory.* Graphs are given up first, then the micro-batch is halved until it fits, for later
updates too.

*Dropout* is seeded by (seed, update, process).
"""

from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ..data.tokens import Tokens, pad_batch
from .loop import BETAS, CLIP_NORM, EPS, MOMENTS, Plan


class PlainStep:
    """See loop.TrainingStep; trains `model` in place."""

    def __init__(
        self, model: PreTrainedModel, tokens: Tokens, plan: Plan, accelerator: Accelerator
    ):
        self.tokens, self.plan, self.accelerator = tokens, plan, accelerator
        self.process, self.processes = accelerator.process_index, accelerator.num_processes
        self.pad_id = model.config.pad_token_id
        self.model = accelerator.prepare(model.train())
        self.named = dict(accelerator.unwrap_model(self.model).named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.named.values(), betas=BETAS, eps=EPS, weight_decay=0.0, fused=True
        )
        self.rates = plan.learning_rates(len(tokens))
        self.losses = torch.full((len(self.rates),), torch.nan, device=accelerator.device)
        self.micro_batch = -(-plan.batch_size // self.processes)
        self.captures = accelerator.device.type == "cuda" and self.processes == 1
        self.graphs: dict[tuple[int, ...], tuple] = {}  # shape: graph, its inputs, its loss
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None

    def begin_epoch(self, batches: list[np.ndarray]) -> None:
        self.batches = batches
        self.model.train()

    def update(self, number: int, batch: int) -> None:
        draw = np.random.SeedSequence((self.plan.seed, number, self.process))
        torch.manual_seed(int(draw.generate_state(1, np.uint64)[0]))
        loss = self._gradients_that_fit(self.batches[batch])
        torch.nn.utils.clip_grad_norm_(self.named.values(), CLIP_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[number])
        self.optimizer.step()
        self.losses[number] = self.accelerator.reduce(loss, "mean")

    def _gradients_that_fit(self, rows: np.ndarray) -> torch.Tensor:
        while True:
            try:
                return self._gradients(rows)
            except RuntimeError as fault:
                helps = self.captures or (self.processes == 1 and self.micro_batch > 1)
                if not (helps and should_reduce_batch_size(fault)):
                    raise
            if self.captures:
                self.captures, self.graphs = False, {}
            else:
                self.micro_batch //= 2
            clear_device_cache(garbage_collection=True)

    def _gradients(self, rows: np.ndarray) -> torch.Tensor:
        """Gradient of the batch's mean loss into `.grad`; returns this process's part of the loss,
        times P.
        """
        self.optimizer.zero_grad(set_to_none=False)
        own, weight = rows[self.process :: self.processes], self.processes / len(rows)
        if len(own) == 0:  # fewer rows than processes: DDP's exchange still needs this one
            own, weight = rows[:1], 0.0
        total = torch.zeros((), device=self.accelerator.device)
        for start in range(0, len(own), self.micro_batch):
            last = start + self.micro_batch >= len(own)
            # Processes exchange gradients once, after the last micro-batch.
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                total += self._add_gradient(own[start : start + self.micro_batch], weight)
        return total

    def _add_gradient(self, rows: np.ndarray, weight: float) -> torch.Tensor:
        """Adds the gradient of `weight` times the rows' sum of losses; returns that product."""
        batch, device = pad_batch(self.tokens, rows, self.pad_id), self.accelerator.device
        batch["weight"] = torch.tensor(weight)
        if device.type == "cuda":
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        shape = tuple(batch["input_ids"].shape)
        if shape in self.graphs:
            graph, inputs, loss = self.graphs[shape]
            for name, tensor in inputs.items():
                tensor.copy_(batch[name])
            graph.replay()
            return loss
        loss = self._backward(**batch)
        if self.captures:  # which runs nothing
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"):
                self.graphs[shape] = graph, batch, self._backward(**batch)
        return loss

    def _backward(self, labels: torch.Tensor, weight: torch.Tensor, **inputs) -> torch.Tensor:
        logits = self.model(**inputs, use_cache=False).logits
        loss = weight * cross_entropy(logits.float(), labels, reduction="sum")
        self.accelerator.backward(loss)
        return loss.detach()

    def tensors(self) -> dict[str, torch.Tensor]:
        result = {f"model.{name}": parameter.data for name, parameter in self.named.items()}
        for moment in MOMENTS:
            for name, parameter in self.named.items():
                result[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
        return result

    def load(self, tensors: dict[str, torch.Tensor], update: int) -> None:
        for name, parameter in self.named.items():
            device = parameter.device
            parameter.data.copy_(tensors[f"model.{name}"])
            state = {m: tensors[f"{m}.{name}"].to(device, copy=True) for m in MOMENTS}
            state["step"] = torch.tensor(float(update), device=device)
            self.optimizer.state[parameter] = state

    def facts(self) -> dict:
        shapes = {"micro_batch": self.micro_batch, "shapes_captured": len(self.graphs)}
        return {"step": "plain", "processes": self.processes, **shapes}
