"""One update as one CUDA graph: forward, backward, clipping and AdamW of GPT-2, nothing in between.

It computes what `PlainStep` computes under bf16 autocast, launched differently:

* *No autograd, no copies.* Both passes are written out: products write into buffers made once,
  parameters and their gradients are flat arrays, so clipping and AdamW are a handful of launches.
* *No compiler.* Products are cuBLAS's, everything between two of them is one Triton kernel; these
  take seconds to build, where torch.compile needs half a minute per shape.
* *No launches.* A batch shape [B, L] runs once as it stands and is captured as a CUDA graph; from
  then on an update is one small copy and one graph launch. All else it needs is on the device.
* *Two lanes.* Only the optimizer needs a weight's gradient, so it is computed on a second stream
  beside the chain of input gradients: each product alone is too small to fill the GPU.
* *Nothing that is not read.* After the last attention only each text's last token is left.
"""

import numpy as np
import torch
import triton
from torch import Tensor
from transformers import PreTrainedModel

from ...data.tokens import Tokens
from ..loop import CLIP_NORM, Plan
from . import kernels, optimizer
from .batches import pack, padded_length, to_device, unpack
from .buffers import allocate
from .launch import Lanes
from .parameters import CHUNKS, HEAD, POSITIONS, TOKENS, Affine, FlatParameters

MAX_LENGTH = 128
PARTIALS = 512  # partial sums of squares per launch
ATTN_IN, ATTN_OUT, MLP_IN, MLP_OUT = range(4)  # as in parameters.MATRICES


def serves(model: PreTrainedModel, tokens: Tokens, plan: Plan) -> bool:
    """Whether model, texts and plan are of the kind that this step is written for."""
    config = model.config
    unusual = (
        config.scale_attn_by_inverse_layer_idx
        or config.reorder_and_upcast_attn
        or config.add_cross_attention
        or not config.scale_attn_weights
        or config.activation_function != "gelu_new"
        or len({config.embd_pdrop, config.resid_pdrop, config.attn_pdrop}) > 1
    )
    fits = config.n_embd // config.n_head in (16, 32, 64, 128) and config.n_layer < 21
    short = tokens.lengths.max() <= MAX_LENGTH
    return not unusual and fits and short and plan.precision == "bf16"


class FusedStep:
    """The training step for one CUDA GPU (see loop.TrainingStep); `model` gets views of what is
    trained. `compute` is the dtype of products' operands; all but bfloat16 is for tests.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Tokens,
        plan: Plan,
        compute: torch.dtype = torch.bfloat16,
    ):
        self.tokens, self.texts, self.config = tokens, plan.batch_size, model.config
        self.width, self.depth = self.config.n_embd, self.config.n_layer
        self.block = triton.next_power_of_2(self.width)
        self.longest = padded_length(int(tokens.lengths.max()))
        self.parameters = FlatParameters(model, compute)
        self.device = self.parameters.device
        self.buffers = allocate(self.config, self.texts, self.longest, compute, self.device)
        self.coefficient = torch.zeros(1, device=self.device)
        self.squares = torch.zeros((self.depth + 3) * PARTIALS, device=self.device)
        p = self.config.resid_pdrop
        self.dropout = (int(p * 2**32), 1 / (1 - p))  # threshold of random words, scale
        rates = plan.learning_rates(len(tokens))
        self.schedule = optimizer.schedule(rates).to(self.device)
        self.losses = torch.full((len(rates),), torch.nan, device=self.device)
        self.step = torch.zeros(1, dtype=torch.int32, device=self.device)
        seed = int(np.random.SeedSequence(plan.seed).generate_state(1)[0] >> 1)
        self.seed = torch.tensor([seed], dtype=torch.int32, device=self.device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.lanes = Lanes(self.device)
        self.run = self.lanes.run
        lengths = [length for length in (16, 32, 64, 128) if length <= self.longest]
        self.lanes.build(self._launch, [*lengths, self.longest])
        self.step.zero_()

    def begin_epoch(self, batches: list[np.ndarray]) -> None:
        pad_id = self.config.pad_token_id
        packed = [pack(self.tokens, rows, self.texts, pad_id) for rows in batches]
        self.epoch = to_device(packed, self.device)

    def update(self, number: int, batch: int) -> None:
        length, values = self.epoch[batch]
        self.buffers.packed[: len(values)].copy_(values)
        if length in self.graphs:
            self.graphs[length].replay()
            return
        self._launch(length)  # the first batch of a shape runs as it stands; capturing runs nothing
        if self.lanes.on_gpu:
            self.graphs[length] = self.lanes.captured(self._launch, length)

    def _launch(self, length: int) -> None:
        """Launch every kernel of an update of a batch [B, length] that lies in `packed`."""
        self.length, self.rows = length, self.texts * length
        self.batch = unpack(self.buffers.packed, self.texts, length)
        head = self.width // self.config.n_head
        block = max(16, triton.next_power_of_2(length))
        self.attention = (head**-0.5, length, self.width, self.config.n_head, head, block)
        self.warps = 8 if length > 64 else 4
        self._catch_up(self.batch.touched, self.batch.n_touched)
        self._forward()
        self._backward()
        self._clip_and_step()

    def _catch_up(self, tokens: Tensor, n_tokens: Tensor) -> None:
        self.run(
            optimizer.catch_up, len(tokens), *self.parameters.trained(TOKENS), tokens, n_tokens,
            self.parameters.current, self.schedule, self.step, self.width, BLOCK=self.block,
        )  # fmt: skip

    def _random(self, site: int) -> tuple:
        """The arguments that name a dropout site to a kernel."""
        return (self.step, self.seed, site, *self.dropout)

    def _forward(self) -> None:
        parameters, buffers, rows = self.parameters, self.buffers, self.rows
        embeddings = parameters.weight(TOKENS), parameters.weight(POSITIONS)
        self._add_norm(*embeddings, 0, 0, rows, embed=True)
        for i, (block, product) in enumerate(zip(buffers.blocks, parameters.products, strict=True)):
            first, second = buffers.norms[2 * i : 2 * i + 2]
            self._product(first.h, product[ATTN_IN], block.qkv, rows)
            self.run(
                kernels.attention, self.texts * self.config.n_head, block.qkv, block.o,
                *self._random(3 * i + 1), *self.attention, num_warps=self.warps,
            )  # fmt: skip
            x, o = first.x, block.o
            if i == self.depth - 1:
                self.run(
                    kernels.gather_last, self.texts, x, o, self.batch.last,
                    buffers.x_last, buffers.o_last, self.length, self.width, BLOCK=self.block,
                )  # fmt: skip
                x, o, rows = buffers.x_last, buffers.o_last, self.texts
            self._product(o, product[ATTN_OUT], buffers.y, rows)
            self._add_norm(x, buffers.y, 2 * i + 1, 3 * i + 2, rows)
            self._product(second.h, product[MLP_IN], block.u, rows)
            n = rows * 4 * self.width
            self.run(kernels.gelu, triton.cdiv(n, 2048), block.u, block.a, n, BLOCK=2048)
            self._product(block.a, product[MLP_OUT], buffers.y, rows)
            self._add_norm(second.x, buffers.y, 2 * i + 2, 3 * i + 3, rows)

    def _product(self, x: Tensor, product: Affine, out: Tensor, rows: int) -> None:
        """out = x W + b, on the first `rows` rows."""
        torch.addmm(product.bias, x[:rows], product.weight, out=out[:rows])

    def _add_norm(self, x: Tensor, y: Tensor, i: int, site: int, rows: int, embed=False) -> None:
        """norms[i].x = x + dropout(y), and its norm."""
        affine, norm = self.parameters.norms[i], self.buffers.norms[i]
        self.run(
            kernels.add_norm, rows, x, y, self.batch.ids, affine.weight, affine.bias,
            norm.x, norm.h, norm.mean, norm.rstd, *self._random(site), self.length, self.width,
            self.config.layer_norm_epsilon, EMBED=embed, BLOCK=self.block,
        )  # fmt: skip

    def _backward(self) -> None:
        buffers, depth, rows = self.buffers, self.depth, self.texts
        final, classes = buffers.norms[-1], len(self.parameters.weight(HEAD))
        self.run(
            kernels.head, rows, final.h, self.parameters.weight(HEAD), self.batch.labels,
            self.batch.count, buffers.dlogits, buffers.text_loss, final.dh, self.width,
            CLASSES=classes, BLOCK=self.block,
        )  # fmt: skip
        # The head's gradient is chunk 0 of its partial sums; the others stay zero.
        self.run(
            kernels.head_gradient, classes, final.h, buffers.dlogits, buffers.text_loss,
            self.losses, self.step, self.parameters.partials(HEAD), rows, self.width,
            CLASSES=classes, BLOCK=self.block,
        )  # fmt: skip
        dx = buffers.dx_last
        dx.zero_()  # nothing but the head reads the last residual
        self._norm_backward(2 * depth, dx, 3 * depth, rows, final.dy)
        for i in reversed(range(depth)):
            block, product = buffers.blocks[i], self.parameters.products[i]
            first, second, third = buffers.norms[2 * i : 2 * i + 3]
            last = i == depth - 1
            o, do = (buffers.o_last, buffers.do_last) if last else (block.o, buffers.do)
            self._product_backward(third.dy, product[MLP_OUT], block.a, buffers.da, rows)
            n = rows * 4 * self.width
            self.run(
                kernels.gelu_backward, triton.cdiv(n, 2048), block.u, buffers.da, block.du, n,
                BLOCK=2048,
            )  # fmt: skip
            self._product_backward(block.du, product[MLP_IN], second.h, second.dh, rows)
            self._norm_backward(2 * i + 1, dx, 3 * i + 2, rows, second.dy)
            self._product_backward(second.dy, product[ATTN_OUT], o, do, rows)
            if last:
                rows = self.rows
                self.run(
                    kernels.scatter_last, rows, dx, do, self.batch.last, buffers.dx, buffers.do,
                    self.length, self.width, BLOCK=self.block,
                )  # fmt: skip
                dx = buffers.dx
            self.run(
                kernels.attention_backward, self.texts * self.config.n_head, block.qkv, buffers.do,
                block.dqkv, *self._random(3 * i + 1), *self.attention, num_warps=self.warps,
            )  # fmt: skip
            self._product_backward(block.dqkv, product[ATTN_IN], first.h, first.dh, rows)
            self._norm_backward(2 * i, dx, 3 * i, rows, first.dy if i else buffers.dx0)
            # While they are in the cache:
            self.lanes.beside(self._square_sums, i, self.parameters.block_gradients[i])

    def _product_backward(
        self, dy: Tensor, product: Affine, x: Tensor, dx: Tensor, rows: int
    ) -> None:
        """dx = dy Wᵀ here; gradients of weight, xᵀ dy, and bias, sum of dy, on the other stream."""
        self.lanes.beside(self._product_gradients, product, x[:rows], dy[:rows])
        torch.mm(dy[:rows], product.weight.t(), out=dx[:rows])

    def _product_gradients(self, product: Affine, x: Tensor, dy: Tensor) -> None:
        torch.mm(x.t(), dy, out=product.weight_gradient)
        rows, columns = dy.shape
        self.run(
            optimizer.column_sums, (triton.cdiv(columns, 128), CHUNKS), dy, None, None, None,
            product.bias_gradient, None, rows, columns, self.parameters.n_vectors, NORM=False,
            CHUNKS=CHUNKS, ROWS=64, COLUMNS=128,
        )  # fmt: skip

    def _norm_backward(self, i: int, dx: Tensor, site: int, rows: int, dy: Tensor) -> None:
        """dx += d norm(dh), dy its dropped copy; the norm's own gradients on the other stream."""
        norm = self.buffers.norms[i]
        self.run(
            kernels.norm_backward, rows, norm.dh, norm.x, norm.mean, norm.rstd,
            self.parameters.norms[i].weight, dx, dy, *self._random(site), self.width,
            BLOCK=self.block,
        )  # fmt: skip
        self.lanes.beside(self._norm_gradients, i, rows)

    def _norm_gradients(self, i: int, rows: int) -> None:
        norm, affine = self.buffers.norms[i], self.parameters.norms[i]
        self.run(
            optimizer.column_sums, (triton.cdiv(self.width, 64), CHUNKS), norm.dh, norm.x,
            norm.mean, norm.rstd, affine.bias_gradient, affine.weight_gradient, rows, self.width,
            self.parameters.n_vectors, NORM=True, CHUNKS=CHUNKS, ROWS=64, COLUMNS=64,
        )  # fmt: skip

    def _square_sums(self, slot: int, gradients: Tensor) -> None:
        out, n = self.squares[slot * PARTIALS :], gradients.numel()
        self.run(optimizer.square_sums, PARTIALS, gradients, out, n, PROGRAMS=PARTIALS, BLOCK=1024)

    def _clip_and_step(self) -> None:
        parameters, buffers, batch, width = self.parameters, self.buffers, self.batch, self.width
        self.run(
            optimizer.position_gradient, self.longest, buffers.dx0, buffers.position_gradients,
            self.texts, self.length, width, BLOCK=self.block,
        )  # fmt: skip
        self.run(
            optimizer.token_gradient, self.rows, buffers.dx0, batch.starts, batch.order,
            batch.n_touched, buffers.token_gradients, width, BLOCK=self.block, ROWS=4,
        )  # fmt: skip
        self.lanes.join()
        vectors, n = parameters.vector_gradients, parameters.n_vectors
        self.run(
            optimizer.reduce_partials, triton.cdiv(n, 512), parameters.vector_partials, vectors, n,
            CHUNKS=CHUNKS, BLOCK=512,
        )  # fmt: skip
        self._square_sums(self.depth, vectors)
        self._square_sums(self.depth + 1, buffers.position_gradients)
        self._square_sums(self.depth + 2, buffers.token_gradients[: self.rows])
        self.run(
            optimizer.clip_coefficient, 1, self.squares, self.coefficient, len(self.squares),
            CLIP_NORM, BLOCK=1024,
        )  # fmt: skip
        self._adamw(0, parameters.matrix_gradients, parameters.copy)
        first_vector = parameters.n_matrices
        self._adamw(first_vector, vectors, parameters.copy[first_vector:])
        self._adamw(parameters.start[POSITIONS], buffers.position_gradients, None)
        self.run(
            optimizer.adamw_rows, self.rows, *parameters.trained(TOKENS), buffers.token_gradients,
            batch.touched, batch.n_touched, parameters.current, self.coefficient, self.schedule,
            self.step, width, BLOCK=self.block,
        )  # fmt: skip
        self.step += 1

    def _adamw(self, start: int, gradients: Tensor, copy: Tensor | None) -> None:
        n = gradients.numel()
        self.run(
            optimizer.adamw, triton.cdiv(n, 1024), *self.parameters.trained_from(start, n),
            gradients, gradients if copy is None else copy, self.coefficient, self.schedule,
            self.step, n, COPY=copy is not None, BLOCK=1024,
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        every = torch.arange(self.config.vocab_size, dtype=torch.int32, device=self.device)
        self._catch_up(every, torch.full_like(every[:1], len(every)))
        return self.parameters.tensors()

    def load(self, tensors: dict[str, Tensor], update: int) -> None:
        self.parameters.load(tensors, update)
        self.step.fill_(update)

    def facts(self) -> dict:
        step = {"step": "fused", "shapes_captured": len(self.graphs)}
        return step | {"processes": 1, "micro_batch": self.texts}
