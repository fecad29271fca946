"""One update as one CUDA graph: forward, backward, clipping and AdamW of GPT-2.

It computes what `PlainStep` does under bf16 autocast:

* Both passes are written out: cuBLAS's products into preallocated buffers, with one Triton kernel
  between two of them.
* The first batch of a shape [B, L] runs eagerly, then the shape is captured.
* Gradients of weights, which only the optimizer needs, are computed on a second stream beside the
  chain of input gradients, since one such product is too small to fill the GPU.
* After the last attention only each text's last token is computed.

*Several processes* each take the next ceil(batch / P) texts of a batch, with the dropout masks that
one process would give them. Every gradient is summed over processes once, a block's while those
before it are computed; all of them then make the same update.
"""

import numpy as np
import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel
from triton import cdiv, next_power_of_2

from ...data.tokens import Tokens
from ..loop import CLIP_NORM, Plan
from . import attention, buffers, kernels, optimizer
from .batches import pack, padded_length, to_device, unpack
from .launch import Lanes
from .parameters import CHUNKS, HEAD, POSITIONS, TOKENS, Affine, FlatParameters

PARTIALS = 512  # partial sums of squares per launch
ATTN_IN, ATTN_OUT, MLP_IN, MLP_OUT = range(4)  # as in parameters.MATRICES


def serves(model: PreTrainedModel, plan: Plan) -> bool:
    config = model.config
    unusual = (
        config.scale_attn_by_inverse_layer_idx
        or config.reorder_and_upcast_attn
        or config.add_cross_attention
        or not config.scale_attn_weights
        or config.activation_function != "gelu_new"
        or config.n_inner not in (None, 4 * config.n_embd)
        or len({config.embd_pdrop, config.resid_pdrop, config.attn_pdrop}) > 1
    )
    head = config.n_embd // config.n_head
    return not unusual and head in (16, 32, 64, 128) and plan.precision == "bf16"


class FusedStep:
    """See loop.TrainingStep; `model`'s parameters become views. `compute`, dtype of products'
    operands: other than bfloat16 for tests only.
    """

    def __init__(
        self, model: PreTrainedModel, tokens: Tokens, plan: Plan, compute=torch.bfloat16,
        process: int = 0, processes: int = 1,
    ):  # fmt: skip
        self.tokens, self.config = tokens, model.config
        self.process, self.processes = process, processes
        self.texts = cdiv(plan.batch_size, processes)
        self.width, self.depth = self.config.n_embd, self.config.n_layer
        self.longest = padded_length(int(tokens.lengths.max()))
        self.parameters = FlatParameters(model, compute)
        self.device = device = self.parameters.device
        self.buffers = buffers.Buffers(
            self.config, self.texts, self.longest, processes, self.parameters.n_vectors,
            compute, device,
        )  # fmt: skip
        self.coefficient = torch.zeros(1, device=device)
        self.squares = torch.zeros((self.depth + 3) * PARTIALS, device=device)
        rates = plan.learning_rates(len(tokens))
        self.schedule = optimizer.schedule(rates).to(device)
        self.losses = torch.full((len(rates),), torch.nan, device=device)
        p, (seed,) = self.config.resid_pdrop, np.random.SeedSequence(plan.seed).generate_state(1)
        random = np.array([0, seed >> 1, int(p * 2**32), 0], dtype=np.uint32)
        random[3:] = np.array([1 / (1 - p)], dtype=np.float32).view(np.uint32)
        self.random = torch.from_numpy(random.view(np.int32)).to(device)  # see kernels.dropped
        self.step = self.random[:1]
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.lanes = Lanes(device, processes)
        blocks = (16, 32, 64, attention.WHOLE)  # what attention's programs are compiled for
        self.lanes.build(self._launch, {min(n, self.longest) for n in (*blocks, self.longest)})
        self.step.zero_()

    def begin_epoch(self, batches: list[np.ndarray]) -> None:
        pad_id = self.config.pad_token_id
        share = self.texts, pad_id, self.process, self.processes
        packed = [pack(self.tokens, rows, *share) for rows in batches]
        self.epoch = to_device(packed, self.device)

    def update(self, number: int, batch: int) -> None:
        length, values = self.epoch[batch]
        self.buffers.packed[: len(values)].copy_(values)
        if length in self.graphs:
            self.graphs[length].replay()
            return
        self._launch(length)  # capturing runs nothing
        if self.lanes.on_gpu:
            self.graphs[length] = self.lanes.captured(self._launch, length)

    def _launch(self, length: int) -> None:
        self.length, self.rows = length, self.texts * length
        self.batch = unpack(self.buffers.packed, self.texts, length, self.processes)
        self._catch_up(self.batch.touched, self.batch.n_touched)
        self._forward()
        self._backward()
        self._clip_and_step()

    def _rowwise(self, kernel, rows: int, *arguments, **options) -> None:
        """One program per row; the kernel's last argument is `width`."""
        block = next_power_of_2(self.width)
        self.lanes.run(kernel, rows, *arguments, self.width, BLOCK=block, **options)

    def _flat(self, kernel, block: int, n: int, *arguments, **options) -> None:
        """One program per `block` elements; the kernel's last argument is `n`."""
        self.lanes.run(kernel, cdiv(n, block), *arguments, n, BLOCK=block, **options)

    def _catch_up(self, tokens: Tensor, n_tokens: Tensor) -> None:
        state = *self.parameters.token_table, tokens, n_tokens, self.parameters.current
        self._rowwise(optimizer.catch_up, len(tokens), *state, self.schedule, self.step)

    def _forward(self) -> None:
        parameters, buffers, rows = self.parameters, self.buffers, self.rows
        embeddings = parameters.weight(TOKENS), parameters.weight(POSITIONS)
        self._add_norm(*embeddings, 0, 0, rows, embed=True)
        for i, (block, product) in enumerate(zip(buffers.blocks, parameters.products, strict=True)):
            first, second = buffers.norms[2 * i : 2 * i + 2]
            self._product(first.h, product[ATTN_IN], block.qkv, rows)
            self._attention(i)
            x, o = first.x, block.o
            if i == self.depth - 1:
                rows, last = self.texts, self.batch.last
                x = torch.index_select(x, 0, last, out=buffers.x_last)
                o = torch.index_select(o, 0, last, out=buffers.o_last)
            self._product(o, product[ATTN_OUT], buffers.y, rows)
            self._add_norm(x, buffers.y, 2 * i + 1, 3 * i + 2, rows)
            self._product(second.h, product[MLP_IN], block.u, rows)
            self._flat(kernels.gelu, 2048, rows * 4 * self.width, block.u, block.a)
            self._product(block.a, product[MLP_OUT], buffers.y, rows)
            self._add_norm(second.x, buffers.y, 2 * i + 2, 3 * i + 3, rows)

    def _product(self, x: Tensor, product: Affine, out: Tensor, rows: int) -> None:
        torch.addmm(product.bias, x[:rows], product.weight, out=out[:rows])

    def _attention(self, layer: int, *gradients: Tensor) -> None:
        """Forward; given `gradients`, dO and where to write that of qkv, backward."""
        block, heads, length = self.buffers.blocks[layer], self.config.n_head, self.length
        programs, head = self.texts * heads, self.width // heads
        if length <= attention.WHOLE:
            size, tiles, warps = max(16, next_power_of_2(length)), 1, 4 + 4 * (length > 64)
            kernel = attention.whole_backward if gradients else attention.whole
            tensors = gradients or (block.o,)
        else:
            size = attention.TILE
            tiles, warps = cdiv(length, size), 4 + 4 * (head > 64)
            kernel = attention.tiled_backward if gradients else attention.tiled
            tensors = block.o, block.log_sum, *gradients
        self.lanes.run(
            kernel, (programs, tiles), block.qkv, *tensors, self.random, 3 * layer + 1,
            self.process * programs, head**-0.5, length, self.width, HEADS=heads, HEAD=head,
            BLOCK=size, num_warps=warps,
        )  # fmt: skip

    def _add_norm(self, x: Tensor, y: Tensor, i: int, site: int, rows: int, embed=False) -> None:
        affine, norm = self.parameters.norms[i], self.buffers.norms[i]
        self._rowwise(
            kernels.add_norm, rows, x, y, self.batch.ids, affine.weight, affine.bias,
            norm.x, norm.h, norm.mean, norm.rstd, self.random, site, self.process * rows,
            self.length, self.config.layer_norm_epsilon, EMBED=embed,
        )  # fmt: skip

    def _backward(self) -> None:
        buffers, batch, depth, rows = self.buffers, self.batch, self.depth, self.texts
        final, head = buffers.norms[-1], self.parameters.weight(HEAD)
        classes = len(head)
        self._rowwise(
            kernels.head, rows, final.h, head, batch.labels, batch.count, buffers.dlogits,
            buffers.text_loss, final.dh, CLASSES=classes,
        )  # fmt: skip
        # The head's gradient is chunk 0 of its partial sums; the others stay zero.
        self._rowwise(
            kernels.head_gradient, classes, final.h, buffers.dlogits, buffers.text_loss,
            self.losses, self.step, self.parameters.partials(HEAD), rows, CLASSES=classes,
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
            self._flat(kernels.gelu_backward, 2048, n, block.u, buffers.da, block.du)
            self._product_backward(block.du, product[MLP_IN], second.h, second.dh, rows)
            self._norm_backward(2 * i + 1, dx, 3 * i + 2, rows, second.dy)
            self._product_backward(second.dy, product[ATTN_OUT], o, do, rows)
            if last:
                rows, at = self.rows, batch.last.long()
                dx = buffers.dx.zero_().index_copy_(0, at, dx)
                buffers.do.zero_().index_copy_(0, at, do)
            self._attention(i, buffers.do, block.dqkv)
            self._product_backward(block.dqkv, product[ATTN_IN], first.h, first.dh, rows)
            self._norm_backward(2 * i, dx, 3 * i, rows, first.dy if i else buffers.dx0)
            self.lanes.after(self._finish_block, i, self.parameters.block_gradients[i])

    def _product_backward(
        self, dy: Tensor, product: Affine, x: Tensor, dx: Tensor, rows: int
    ) -> None:
        """dx = dy Wᵀ; on the second stream the weight's gradient xᵀ dy, the bias's sum of dy."""
        self.lanes.beside(self._product_gradients, product, x[:rows], dy[:rows])
        torch.mm(dy[:rows], product.weight.t(), out=dx[:rows])

    def _product_gradients(self, product: Affine, x: Tensor, dy: Tensor) -> None:
        torch.mm(x.t(), dy, out=product.weight_gradient)
        self._column_sums(product, dy, len(dy), 128)

    def _norm_backward(self, i: int, dx: Tensor, site: int, rows: int, dy: Tensor) -> None:
        """dx += d norm(dh), dy its dropped copy; the norm's gradients on the second stream."""
        norm, affine = self.buffers.norms[i], self.parameters.norms[i]
        read = norm.x, norm.mean, norm.rstd
        random = self.random, site, self.process * rows
        backward, weight = kernels.norm_backward, affine.weight
        self._rowwise(backward, rows, norm.dh, *read, weight, dx, dy, *random)
        self.lanes.beside(self._column_sums, affine, norm.dh, rows, 64, *read)

    def _column_sums(self, affine: Affine, dy: Tensor, rows: int, block: int, *norm: Tensor):
        """Gradients of a bias and, given the `norm`'s x, mean, rstd, of its weight."""
        columns = dy.shape[1]
        self.lanes.run(
            optimizer.column_sums, (cdiv(columns, block), CHUNKS), dy, *(norm or (None,) * 3),
            affine.bias_gradient, affine.weight_gradient, rows, columns, self.parameters.n_vectors,
            CHUNKS=CHUNKS, ROWS=64, COLUMNS=block,
        )  # fmt: skip

    def _finish_block(self, i: int, gradients: Tensor) -> None:
        if self.processes > 1:
            distributed.all_reduce(gradients)
        self._square_sums(i, gradients)  # while in the cache

    def _sum_rest(self, n_tokens: int) -> None:
        """Over processes: loss and gradients of all but the matrices, as one array."""
        summed, loss, now = self.buffers.summed, self.buffers.loss[:, :1], self.step.long()
        loss.copy_(self.losses[now])
        distributed.all_reduce(summed[: len(summed) - len(self.buffers.token_gradients) + n_tokens])
        self.losses.index_copy_(0, now, loss[0])

    def _square_sums(self, slot: int, gradients: Tensor) -> None:
        sums, out, n = optimizer.square_sums, self.squares[slot * PARTIALS :], gradients.numel()
        self.lanes.run(sums, PARTIALS, gradients, out, n, PROGRAMS=PARTIALS, BLOCK=1024)

    def _clip_and_step(self) -> None:
        parameters, buffers, batch = self.parameters, self.buffers, self.batch
        positions, tokens = buffers.position_gradients, buffers.token_gradients
        dx, shape = buffers.dx0, (self.texts, self.length)
        self._rowwise(optimizer.position_gradient, self.longest, dx, positions, *shape)
        index = batch.starts, batch.order, batch.n_touched
        n_tokens = len(batch.touched)
        tokens = tokens[:n_tokens]
        self._rowwise(optimizer.token_gradient, n_tokens, dx, *index, tokens, ROWS=4)
        self.lanes.join()
        vectors, partials = buffers.vector_gradients, parameters.vector_partials
        self._flat(optimizer.reduce_partials, 512, len(vectors), partials, vectors, CHUNKS=CHUNKS)
        if self.processes > 1:
            self._sum_rest(n_tokens)
        for slot, gradients in enumerate((vectors, positions, tokens), self.depth):
            self._square_sums(slot, gradients)
        clip, squares, n = optimizer.clip_coefficient, self.squares, len(self.squares)
        self.lanes.run(clip, 1, squares, self.coefficient, n, CLIP_NORM, BLOCK=1024)
        first_vector = parameters.n_matrices
        self._adamw(0, parameters.matrix_gradients, parameters.copy)
        self._adamw(first_vector, vectors, parameters.copy[first_vector:])
        self._adamw(parameters.start[POSITIONS], positions, None)
        self._rowwise(
            optimizer.adamw_rows, n_tokens, *parameters.token_table, tokens, batch.touched,
            batch.n_touched, parameters.current, self.coefficient, self.schedule, self.step,
        )  # fmt: skip
        self.step += 1

    def _adamw(self, start: int, gradients: Tensor, copy: Tensor | None) -> None:
        n = gradients.numel()
        self._flat(
            optimizer.adamw, 1024, n, *self.parameters.trained(start, n), gradients, copy,
            self.coefficient, self.schedule, self.step,
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        every = torch.arange(self.config.vocab_size, dtype=torch.int32, device=self.device)
        self._catch_up(every, torch.full_like(every[:1], len(every)))
        return self.parameters.tensors()

    def load(self, tensors: dict[str, Tensor], update: int) -> None:
        self.parameters.load(tensors, update)
        self.step.fill_(update)

    def facts(self) -> dict:
        shapes = {"micro_batch": self.texts, "shapes_captured": len(self.graphs)}
        return {"step": "fused", "processes": self.processes, **shapes}
