"""One update as one CUDA graph: forward, backward, clipping and AdamW of GPT-2 with nothing in
between.

It computes what `PlainStep` computes under bf16 autocast, launched differently:

* *No autograd, no copies.* The forward and backward passes are written out: each matrix product
  writes into a buffer made once, weight gradients straight into one flat bf16 array. FP32 weights,
  moments and the bf16 weights that products read are flat arrays too, so that clipping and AdamW
  are a handful of launches. The model's parameters are views of the FP32 array, so validation and
  saving use the model itself.
* *No compiler.* Products are cuBLAS's, everything between two of them is one Triton kernel
  (fused_kernels.py); these take seconds to build, where torch.compile needs half a minute a shape.
* *No launches.* A batch shape [B, L] runs once as it stands and is captured as a CUDA graph; from
  then on an update is one small copy and one graph launch. L is the longest text of the batch,
  rounded up to 8.
* *Two lanes.* A weight's gradient is needed only by the optimizer, so in the backward pass it is
  computed on a second stream beside the chain of input gradients: each product alone is too small
  to fill the GPU.
* *Nothing that is not read.* Only a text's last token is classified: after the last attention one
  row a text is left. Padding needs no mask: it is on the right, and attention looks left.

The update counter, learning rates, dropout seeds and losses live on the device; a whole epoch's
batches are there too.
"""

import numpy as np
import torch
import triton

from ...data.tokens import Tokens
from ..loop import BETAS, CLIP_NORM, EPS, Plan
from . import kernels, optimizer
from .batches import FIELDS, EpochOnDevice, field_sizes, padded_length
from .buffers import activations
from .launch import Lanes
from .parameters import CHUNKS, HEAD, MATRICES, POSITIONS, TOKENS, FlatParameters

MAX_LENGTH = 128
PARTIALS = 512  # partial sums of squares a launch
ADAM = {"BETA1": BETAS[0], "BETA2": BETAS[1], "EPS": EPS}


def serves(model: torch.nn.Module, plan: Plan, max_length: int) -> bool:
    """Whether a model and plan are of the kind that this step is written for."""
    config = model.config
    head = config.n_embd // config.n_head
    plain = not (
        config.scale_attn_by_inverse_layer_idx
        or config.reorder_and_upcast_attn
        or config.add_cross_attention
    )
    rates = {config.embd_pdrop, config.resid_pdrop, config.attn_pdrop}
    return (
        plain and config.scale_attn_weights and config.activation_function == "gelu_new" and len(rates) == 1
        and head in (16, 32, 64, 128) and config.n_layer < 21 and max_length <= MAX_LENGTH and plan.precision == "bf16"
    )  # fmt: skip


class FusedStep:
    """The training step for one CUDA GPU (see training.TrainingStep). `model` holds views of what
    is trained.

    `compute` is the type of matrix products' operands; anything but bfloat16 is for tests.
    """

    def __init__(self, model, tokens: Tokens, plan: Plan, compute: torch.dtype = torch.bfloat16):
        self.tokens, self.texts, self.config = tokens, plan.batch_size, model.config
        self.width = self.config.n_embd
        self.block = triton.next_power_of_2(self.width)
        self.longest = padded_length(int(tokens.lengths.max()))
        self.parameters = FlatParameters(model, compute)
        self.device = self.parameters.device
        vars(self).update(activations(self.config, self.texts, self.longest, compute, self.device))
        self.coefficient = torch.zeros(1, device=self.device)
        self.squares = torch.zeros((self.config.n_layer + 3) * PARTIALS, device=self.device)
        p = self.config.resid_pdrop
        self.dropout = (int(p * 2**32), 1 / (1 - p))
        rates = plan.learning_rates(len(tokens)).astype(np.float64)
        steps = np.arange(1, len(rates) + 1)
        schedule = np.stack(
            [rates / (1 - BETAS[0] ** steps), 1 / np.sqrt(1 - BETAS[1] ** steps)], axis=1
        )
        self.schedule = torch.tensor(schedule, dtype=torch.float32, device=self.device)
        self.losses = torch.full((len(rates),), torch.nan, device=self.device)
        self.step = torch.zeros(1, dtype=torch.int32, device=self.device)
        seed = int(np.random.SeedSequence(plan.seed).generate_state(1)[0] >> 1)
        self.seed = torch.tensor([seed], dtype=torch.int32, device=self.device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.lanes = Lanes(self.device)
        self.run = self.lanes.run
        self.lanes.build(
            self._launch,
            [length for length in (16, 32, 64, 128) if length <= self.longest] + [self.longest],
        )
        self.step.zero_()

    def begin_epoch(self, batches: list[np.ndarray]) -> None:
        self.epoch = EpochOnDevice(
            self.tokens, batches, self.texts, self.config.pad_token_id, self.device
        )

    def update(self, number: int, batch: int) -> None:
        length, values = self.epoch.batch(batch)
        self.inputs[: len(values)].copy_(values)
        if length in self.graphs:
            self.graphs[length].replay()
            return
        self._launch(
            length
        )  # the first batch of a shape runs as it stands; capturing, after it, runs nothing
        if self.lanes.on_gpu:
            self.graphs[length] = self.lanes.captured(self._launch, length)

    def _launch(self, length: int) -> None:
        """Launch every kernel of an update of a batch [B, length] that lies in `inputs`."""
        self.length, self.rows = length, self.texts * length
        sizes = field_sizes(self.texts, length)
        vars(self).update(zip(FIELDS, self.inputs[: sum(sizes)].split(sizes), strict=True))
        self._catch_up(self.touched, self.n_touched)
        self._forward()
        self._backward()
        self._clip_and_step()

    def _catch_up(self, rows: torch.Tensor, n_rows: torch.Tensor) -> None:
        self.run(
            optimizer.catch_up, (len(rows),),
            *self.parameters.trained(TOKENS), rows, n_rows, self.parameters.current, self.schedule, self.step, self.width,
            **ADAM, LIMIT=optimizer.CATCH_UP, BLOCK=self.block,
        )  # fmt: skip

    def _random(self, site: int) -> tuple:
        """The arguments that name a dropout site to a kernel."""
        return (self.step, self.seed, site, *self.dropout)

    def _norm(self, i: int) -> tuple[str, str]:
        """Names of the i-th norm's weight and bias: two a block, then the final one."""
        at = (
            f"transformer.h.{i // 2}.ln_{i % 2 + 1}"
            if i < 2 * self.config.n_layer
            else "transformer.ln_f"
        )
        return f"{at}.weight", f"{at}.bias"

    def _forward(self) -> None:
        width, eps, rows, length = (
            self.width,
            self.config.layer_norm_epsilon,
            self.rows,
            self.length,
        )
        weight = self.parameters.weight
        self.run(
            kernels.embed_norm, (rows,),
            self.ids, weight(TOKENS), weight(POSITIONS), *map(weight, self._norm(0)),
            self.x[0], self.h[0], self.mean[0], self.rstd[0], *self._random(0), length, width, eps, BLOCK=self.block,
        )  # fmt: skip
        for block in range(self.config.n_layer):
            first, second = 2 * block, 2 * block + 1
            self._product(self.h[first], block, 0, self.qkv[block], rows)
            self.run(
                kernels.attention, (self.texts * self.config.n_head,), self.qkv[block], self.o[block],
                *self._random(3 * block + 1), *self._attention_shape(), num_warps=self._warps(),
            )  # fmt: skip
            x, o = self.x[first], self.o[block]
            if block == self.config.n_layer - 1:
                self.run(
                    kernels.gather_last,
                    (self.texts,),
                    x,
                    o,
                    self.last,
                    self.x_last,
                    self.o_last,
                    length,
                    width,
                    BLOCK=self.block,
                )
                x, o, rows = self.x_last, self.o_last, self.texts
            self._product(o, block, 1, self.y, rows)
            self._add_norm(x, second, 3 * block + 2, rows)
            self._product(self.h[second], block, 2, self.u[block], rows)
            n = rows * 4 * width
            self.run(
                kernels.gelu, (triton.cdiv(n, 2048),), self.u[block], self.a[block], n, BLOCK=2048
            )
            self._product(self.a[block], block, 3, self.y, rows)
            self._add_norm(self.x[second], second + 1, 3 * block + 3, rows)

    def _product(
        self, x: torch.Tensor, block: int, kind: int, out: torch.Tensor, rows: int
    ) -> None:
        """out = x W + b, on the first `rows` rows."""
        name = f"transformer.h.{block}.{MATRICES[kind]}"
        bias, weight = (
            self.parameters.operand(f"{name}.bias"),
            self.parameters.operand(f"{name}.weight"),
        )
        torch.addmm(bias, x[:rows], weight, out=out[:rows])

    def _add_norm(self, x: torch.Tensor, i: int, site: int, rows: int) -> None:
        """x[i] = x + dropout(y), h[i] = norm(x[i])."""
        self.run(
            kernels.add_norm, (rows,),
            x, self.y, *map(self.parameters.weight, self._norm(i)), self.x[i], self.h[i], self.mean[i], self.rstd[i],
            *self._random(site), self.width, self.config.layer_norm_epsilon, BLOCK=self.block,
        )  # fmt: skip

    def _attention_shape(self) -> tuple:
        head = self.width // self.config.n_head
        return (
            head**-0.5,
            self.length,
            self.width,
            self.config.n_head,
            head,
            max(16, triton.next_power_of_2(self.length)),
        )

    def _warps(self) -> int:
        return 8 if self.length > 64 else 4

    def _backward(self) -> None:
        width, depth, length, rows = self.width, self.config.n_layer, self.length, self.texts
        final = 2 * depth
        shape = {"CLASSES": self.config.num_labels, "BLOCK": self.block}
        self.run(
            kernels.head, (rows,),
            self.h[final], self.parameters.weight(HEAD), self.labels, self.count, self.dlogits, self.row_loss,
            self.dh[final], width, **shape,
        )  # fmt: skip
        self.run(
            kernels.head_gradient, (self.config.num_labels,),
            self.h[final], self.dlogits, self.row_loss, self.losses, self.step,
            self.parameters.partials(HEAD), rows, width, **shape,  # as chunk 0 of its partial sums; the others stay zero
        )  # fmt: skip
        self.dx_last[:rows].zero_()  # nothing but the head reads the last residual
        dx = self.dx_last
        self._norm_backward(final, dx, 3 * depth, rows, dx)
        for block in reversed(range(depth)):
            first, second = 2 * block, 2 * block + 1
            o = self.o_last if block == depth - 1 else self.o[block]
            self._product_backward(self.dy[second + 1], block, 3, self.a[block], self.da, rows)
            n = rows * 4 * width
            self.run(
                kernels.gelu_backward,
                (triton.cdiv(n, 2048),),
                self.u[block],
                self.da,
                self.du[block],
                n,
                BLOCK=2048,
            )
            self._product_backward(self.du[block], block, 2, self.h[second], self.dh[second], rows)
            self._norm_backward(second, dx, 3 * block + 2, rows, dx)
            if block == depth - 1:
                self._product_backward(self.dy[second], block, 1, o, self.do_last, rows)
                rows = self.rows
                self.run(
                    kernels.scatter_last,
                    (rows,),
                    dx,
                    self.do_last,
                    self.last,
                    self.dx,
                    self.do,
                    length,
                    width,
                    BLOCK=self.block,
                )
                dx = self.dx
            else:
                self._product_backward(self.dy[second], block, 1, o, self.do, rows)
            self.run(
                kernels.attention_backward, (self.texts * self.config.n_head,),
                self.qkv[block], self.do, self.dqkv[block], *self._random(3 * block + 1), *self._attention_shape(),
                num_warps=self._warps(),
            )  # fmt: skip
            self._product_backward(self.dqkv[block], block, 0, self.h[first], self.dh[first], rows)
            self._norm_backward(first, dx, 3 * block, rows, dx, self.dx0 if block == 0 else None)
            self.lanes.beside(
                self._squares, block, self.parameters.block_gradients(block)
            )  # while they are in the cache

    def _product_backward(self, dy, block: int, kind: int, x, dx, rows: int) -> None:
        """dx = dy Wᵀ here; the gradients of weight, xᵀ dy, and bias, sum of dy, on the second
        stream.
        """
        name = f"transformer.h.{block}.{MATRICES[kind]}"
        self.lanes.beside(self._parameter_gradients, name, x[:rows], dy[:rows])
        torch.mm(dy[:rows], self.parameters.operand(f"{name}.weight").t(), out=dx[:rows])

    def _parameter_gradients(self, name: str, x: torch.Tensor, dy: torch.Tensor) -> None:
        torch.mm(x.t(), dy, out=self.parameters.matrix_gradient(f"{name}.weight"))
        rows, columns = dy.shape
        self.run(
            optimizer.column_sums, (triton.cdiv(columns, 128), CHUNKS), dy, self.parameters.partials(f"{name}.bias"), rows,
            columns, self.parameters.n_vectors, CHUNKS=CHUNKS, ROWS=64, COLUMNS=128,
        )  # fmt: skip

    def _norm_backward(self, i: int, dx_in, site: int, rows: int, dx_out, dy=None) -> None:
        """From dh[i]: dx_out = dx_in + d norm, dy[i] = its dropped copy; the norm's own gradients
        on the second stream.
        """
        weight, bias = self._norm(i)
        self.run(
            kernels.norm_backward, (rows,),
            self.dh[i], self.x[i], self.mean[i], self.rstd[i], self.parameters.weight(weight), dx_in, dx_out,
            self.dy[i] if dy is None else dy, *self._random(site), self.width, BLOCK=self.block,
        )  # fmt: skip
        self.lanes.beside(self._norm_gradients, i, weight, bias, rows)

    def _norm_gradients(self, i: int, weight: str, bias: str, rows: int) -> None:
        self.run(
            optimizer.norm_column_sums, (triton.cdiv(self.width, 64), CHUNKS),
            self.dh[i], self.x[i], self.mean[i], self.rstd[i], self.parameters.partials(weight), self.parameters.partials(bias),
            rows, self.width, self.parameters.n_vectors, CHUNKS=CHUNKS, ROWS=64, COLUMNS=64,
        )  # fmt: skip

    def _squares(self, slot: int, gradients: torch.Tensor) -> None:
        out = self.squares[slot * PARTIALS :]
        self.run(
            optimizer.square_sums,
            (PARTIALS,),
            gradients,
            out,
            gradients.numel(),
            PROGRAMS=PARTIALS,
            BLOCK=1024,
        )

    def _clip_and_step(self) -> None:
        width, depth = self.width, self.config.n_layer
        self.run(
            optimizer.position_gradient, (self.longest,), self.dx0, self.position_gradients, self.texts, self.length,
            width, BLOCK=self.block,
        )  # fmt: skip
        self.run(
            optimizer.token_gradient, (self.rows,), self.dx0, self.starts, self.order, self.n_touched,
            self.token_gradients, width, BLOCK=self.block, ROWS=4,
        )  # fmt: skip
        self.lanes.join()
        n = self.parameters.n_vectors
        self.run(
            optimizer.reduce_partials, (triton.cdiv(n, 512),), self.parameters.vector_partials,
            self.parameters.vector_gradients, n, CHUNKS=CHUNKS, BLOCK=512,
        )  # fmt: skip
        others = (
            self.parameters.vector_gradients,
            self.position_gradients,
            self.token_gradients[: self.rows],
        )
        for slot, gradients in enumerate(others):
            self._squares(depth + slot, gradients)
        self.run(
            optimizer.clip_coefficient,
            (1,),
            self.squares,
            self.coefficient,
            len(self.squares),
            CLIP_NORM,
            BLOCK=1024,
        )
        parameters, m = self.parameters, self.parameters.n_matrices
        self._adamw(0, parameters.matrix_gradients, parameters.copy)
        self._adamw(m, parameters.vector_gradients, parameters.copy[m:])
        self._adamw(parameters.start[POSITIONS], self.position_gradients, None)
        self.run(
            optimizer.adamw_rows, (self.rows,),
            *self.parameters.trained(TOKENS), self.token_gradients, self.touched, self.n_touched, self.parameters.current,
            self.coefficient, self.schedule, self.step, width, **ADAM, BLOCK=self.block,
        )  # fmt: skip
        self.step += 1

    def _adamw(self, start: int, gradients: torch.Tensor, copy: torch.Tensor | None) -> None:
        n = gradients.numel()
        self.run(
            optimizer.adamw, (triton.cdiv(n, 1024),),
            *self.parameters.trained_from(start, n), gradients, gradients if copy is None else copy,
            self.coefficient, self.schedule, self.step, n, **ADAM, COPY=copy is not None, BLOCK=1024,
        )  # fmt: skip

    def tensors(self) -> dict[str, torch.Tensor]:
        every_row = torch.arange(self.config.vocab_size, dtype=torch.int32, device=self.device)
        self._catch_up(
            every_row, torch.tensor([len(every_row)], dtype=torch.int32, device=self.device)
        )
        return self.parameters.tensors()

    def load(self, tensors: dict[str, torch.Tensor], update: int) -> None:
        self.parameters.load(tensors, update)
        self.step.fill_(update)

    def facts(self) -> dict:
        return {
            "step": "fused",
            "shapes_captured": len(self.graphs),
            "processes": 1,
            "micro_batch": self.texts,
        }
