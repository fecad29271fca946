"""One update as one CUDA graph: forward, backward, clipping and AdamW of GPT-2 with nothing in between.

It computes what `PlainStep` computes under bf16 autocast, launched differently:

* *No autograd, no copies.* The forward and backward passes are written out: each matrix product writes into a buffer made
  once, weight gradients straight into one flat bf16 array. FP32 weights, moments and the bf16 weights that products read
  are flat arrays too, so that clipping and AdamW are a handful of launches. The model's parameters are views of the FP32
  array, so validation and saving use the model itself.
* *No compiler.* Products are cuBLAS's, everything between two of them is one Triton kernel (fused_kernels.py); these take
  seconds to build, where torch.compile needs half a minute a shape.
* *No launches.* A batch shape [B, L] runs once as it stands and is captured as a CUDA graph; from then on an update is one
  small copy and one graph launch. L is the longest text of the batch, rounded up to 8.
* *Two lanes.* A weight's gradient is needed only by the optimizer, so in the backward pass it is computed on a second
  stream beside the chain of input gradients: each product alone is too small to fill the GPU.
* *Nothing that is not read.* Only a text's last token is classified: after the last attention one row a text is left.
  Padding needs no mask: it is on the right, and attention looks left.

The update counter, learning rates, dropout seeds and losses live on the device; a whole epoch's batches are there too.
"""

import numpy as np
import torch
import triton

from . import fused_kernels as kernels
from . import fused_optimizer as optimizer
from .data import Tokens
from .training import BETAS, CLIP_NORM, EPS, Plan

MAX_LENGTH = 128
CHUNKS = 16  # partial sums in which a bias gradient is computed
PARTIALS = 512  # partial sums of squares a launch
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
VECTORS = ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", *(f"{name}.bias" for name in MATRICES))
ADAM = {"BETA1": BETAS[0], "BETA2": BETAS[1], "EPS": EPS}


def serves(model: torch.nn.Module, plan: Plan, max_length: int) -> bool:
    """Whether a model and plan are of the kind that this step is written for."""
    config = model.config
    head = config.n_embd // config.n_head
    plain = not (config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or config.add_cross_attention)
    rates = {config.embd_pdrop, config.resid_pdrop, config.attn_pdrop}
    return (
        plain and config.scale_attn_weights and config.activation_function == "gelu_new" and len(rates) == 1
        and head in (16, 32, 64, 128) and config.n_layer < 21 and max_length <= MAX_LENGTH and plan.precision == "bf16"
    )  # fmt: skip


class FusedStep:
    """The training step for one CUDA GPU (see training.TrainingStep). `model` holds views of what is trained.

    `compute` is the type of matrix products' operands; anything but bfloat16 is for tests.
    """

    def __init__(self, model, tokens: Tokens, plan: Plan, compute: torch.dtype = torch.bfloat16):
        self.model, self.tokens, self.plan, self.config = model, tokens, plan, model.config
        self.device = next(model.parameters()).device
        self.width, self.texts, self.compute = self.config.n_embd, plan.batch_size, compute
        self.block = triton.next_power_of_2(self.width)
        self.longest = -(-int(tokens.lengths.max()) // 8) * 8
        self._lay_out_parameters()
        self._make_buffers()
        p = self.config.resid_pdrop
        self.dropout = (int(p * 2**32), 1 / (1 - p))
        rates = plan.learning_rates(len(tokens)).astype(np.float64)
        steps = np.arange(1, len(rates) + 1)
        schedule = np.stack([rates / (1 - BETAS[0] ** steps), 1 / np.sqrt(1 - BETAS[1] ** steps)], axis=1)
        self.schedule = torch.tensor(schedule, dtype=torch.float32, device=self.device)
        self.losses = torch.full((len(rates),), torch.nan, device=self.device)
        self.step = torch.zeros(1, dtype=torch.int32, device=self.device)
        seed = int(np.random.SeedSequence(plan.seed).generate_state(1)[0] >> 1)
        self.seed = torch.tensor([seed], dtype=torch.int32, device=self.device)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.on_gpu = self.device.type == "cuda"
        if self.on_gpu:
            self.main, self.side = torch.cuda.Stream(), torch.cuda.Stream()  # the first is for capturing only
            self.pool = torch.cuda.graph_pool_handle()

    def _lay_out_parameters(self) -> None:
        """Move all parameters into one flat FP32 array: matrices | vectors and head | positions | tokens."""
        named = dict(self.model.named_parameters())
        blocks = range(self.config.n_layer)
        order = [f"transformer.h.{i}.{name}.weight" for i in blocks for name in MATRICES]
        n_matrices = len(order)
        order += [f"transformer.h.{i}.{name}" for i in blocks for name in VECTORS]
        order += ["transformer.ln_f.weight", "transformer.ln_f.bias", "score.weight"]
        n_vectors = len(order)
        order += ["transformer.wpe.weight", "transformer.wte.weight"]
        assert set(order) == set(named), "a GPT-2 classifier with other parameters than this step knows"
        sizes = [named[name].numel() for name in order]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        self.n_matrices, self.n_compute = int(starts[n_matrices]), int(starts[n_vectors])
        self.n_vectors = self.n_compute - self.n_matrices
        self.start = dict(zip(order, (int(start) for start in starts), strict=False))
        self.shape = {name: named[name].shape for name in order}
        self.flat = torch.empty(int(starts[-1]), device=self.device)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        for name in order:
            self._view(self.flat, name).copy_(named[name].data)
            named[name].data = self._view(self.flat, name)
        self.copy = self.flat[: self.n_compute].to(self.compute)
        self.matrix_gradients = torch.zeros(self.n_matrices, dtype=self.compute, device=self.device)
        self.vector_partials = torch.zeros(CHUNKS, self.n_vectors, device=self.device)
        self.vector_gradients = torch.zeros(self.n_vectors, device=self.device)
        self.current = torch.full((self.config.vocab_size,), -1, dtype=torch.int32, device=self.device)

    def _view(self, flat: torch.Tensor, name: str, offset: int = 0) -> torch.Tensor:
        start = self.start[name] - offset
        return flat[start : start + self.shape[name].numel()].view(self.shape[name])

    def _make_buffers(self) -> None:
        """Activations and gradients of the largest batch; smaller batches use their first rows."""
        rows, width, depth = self.texts * self.longest, self.width, self.config.n_layer

        def many(n: int, columns: int, kind=self.compute) -> list[torch.Tensor]:
            return [torch.zeros(rows, columns, dtype=kind, device=self.device) for _ in range(n)]

        single = torch.float32
        self.x, self.h = many(2 * depth + 1, width, single), many(2 * depth + 1, width)
        self.mean, self.rstd = many(2 * depth + 1, 1, single), many(2 * depth + 1, 1, single)
        self.qkv, self.o, self.u, self.a = (
            many(depth, 3 * width),
            many(depth, width),
            many(depth, 4 * width),
            many(depth, 4 * width),
        )
        self.y, self.x_last, self.o_last = many(1, width)[0], many(1, width, single)[0], many(1, width)[0]
        self.dx, self.dx_last, self.dx0 = many(3, width, single)
        self.do, self.do_last, self.da = many(1, width)[0], many(1, width)[0], many(1, 4 * width)[0]
        # Read by the second stream while the first goes on, so a buffer a layer: gradients of products and of norms' outputs.
        self.dh, self.dy = many(2 * depth + 1, width), many(2 * depth + 1, width)
        self.du, self.dqkv = many(depth, 4 * width), many(depth, 3 * width)
        self.token_gradients = torch.zeros(rows, width, device=self.device)
        self.position_gradients = torch.zeros(self.longest, width, device=self.device)
        classes = self.config.num_labels
        self.dlogits, self.row_loss = (
            torch.zeros(self.texts, classes, device=self.device),
            torch.zeros(self.texts, device=self.device),
        )
        self.coefficient = torch.zeros(1, device=self.device)
        self.squares = torch.zeros((self.config.n_layer + 3) * PARTIALS, device=self.device)
        self.inputs = torch.zeros(4 * rows + 2 * self.texts + 3, dtype=torch.int32, device=self.device)

    # Batches -----------------------------------------------------------------------------------------------------------

    def begin_epoch(self, batches: list[np.ndarray]) -> None:
        """Pack the epoch's batches and copy them to the device at once (40 MB for 47,000 rows)."""
        packed = [self._pack(rows) for rows in batches]
        self.lengths = [length for length, _ in packed]
        self.places = np.concatenate([[0], np.cumsum([len(values) for _, values in packed])]).tolist()
        self.epoch = torch.from_numpy(np.concatenate([values for _, values in packed])).to(self.device)

    def _pack(self, rows: np.ndarray) -> tuple[int, np.ndarray]:
        """A batch's length L and, as one int32 array, what the kernels read: token ids [B L], last tokens [B], labels [B],
        count, number of different tokens n, those tokens [B L], and the places [B L] where each occurs, from starts [B L + 1]."""
        lengths = self.tokens.lengths[rows]
        length = -(-int(lengths.max()) // 8) * 8
        ids = np.full((self.texts, length), self.config.pad_token_id, dtype=np.int32)
        real = np.zeros((self.texts, length), dtype=bool)
        real[: len(rows)] = np.arange(length) < lengths[:, None]
        ids[real] = np.concatenate([self.tokens.row(i) for i in rows])
        last, labels = np.zeros(self.texts, dtype=np.int32), np.full(self.texts, -1, dtype=np.int32)
        last[: len(rows)], labels[: len(rows)] = lengths - 1, self.tokens.labels[rows]
        size = self.texts * length
        unique, starts, order = np.zeros(size, np.int32), np.zeros(size + 1, np.int32), np.zeros(size, np.int32)
        places = np.flatnonzero(real.reshape(-1)).astype(np.int32)
        places = places[np.argsort(ids.reshape(-1)[places], kind="stable")]
        found, first = np.unique(ids.reshape(-1)[places], return_index=True)
        unique[: len(found)], order[: len(places)] = found, places
        starts[: len(found)], starts[len(found) :] = first, len(places)
        counts = np.array([len(rows), len(found)], dtype=np.int32)
        return length, np.concatenate([ids.reshape(-1), last, labels, counts, unique, order, starts])

    def update(self, number: int, batch: int) -> None:
        length = self.lengths[batch]
        values = self.epoch[self.places[batch] : self.places[batch + 1]]
        self.inputs[: len(values)].copy_(values)
        if length in self.graphs:
            self.graphs[length].replay()
            return
        # The first batch of a shape runs as it stands, which also builds its kernels; capturing runs nothing.
        self._launch(length)
        if self.on_gpu:
            self.graphs[length] = self._captured(length)

    def _captured(self, length: int) -> torch.cuda.CUDAGraph:
        """The launches of an update as a graph. (torch.cuda.graph would collect garbage first, which takes longer than this.)"""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.main):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            self._launch(length)
            graph.capture_end()
        return graph

    # One update --------------------------------------------------------------------------------------------------------

    def _launch(self, length: int) -> None:
        """Launch every kernel of an update of a batch [B, length] that lies in `inputs`."""
        self.length, self.rows = length, self.texts * length
        sizes = [self.rows, self.texts, self.texts, 1, 1, self.rows, self.rows, self.rows + 1]
        cuts = self.inputs[: sum(sizes)].split(sizes)
        self.ids, self.last, self.labels, self.count, self.n_touched, self.touched, self.order, self.starts = cuts
        self._catch_up(self.touched, self.n_touched)
        self._forward()
        self._backward()
        self._clip_and_step()

    def _catch_up(self, rows: torch.Tensor, n_rows: torch.Tensor) -> None:
        optimizer.catch_up[(len(rows),)](
            *self._table("transformer.wte.weight"), rows, n_rows, self.current, self.schedule, self.step, self.width,
            **ADAM, LIMIT=optimizer.CATCH_UP, BLOCK=self.block,
        )  # fmt: skip

    def _table(self, name: str) -> tuple[torch.Tensor, ...]:
        """Weight and both moments of a parameter."""
        return tuple(self._view(flat, name) for flat in (self.flat, self.exp_avg, self.exp_avg_sq))

    def _random(self, site: int) -> tuple:
        """The arguments that name a dropout site to a kernel."""
        return (self.step, self.seed, site, *self.dropout)

    def _norm(self, i: int) -> tuple[str, str]:
        """Names of the i-th norm's weight and bias: two a block, then the final one."""
        at = f"transformer.h.{i // 2}.ln_{i % 2 + 1}" if i < 2 * self.config.n_layer else "transformer.ln_f"
        return f"{at}.weight", f"{at}.bias"

    def _forward(self) -> None:
        width, eps, rows, length = self.width, self.config.layer_norm_epsilon, self.rows, self.length
        weight = lambda name: self._view(self.flat, name)  # noqa: E731
        kernels.embed_norm[(rows,)](
            self.ids, weight("transformer.wte.weight"), weight("transformer.wpe.weight"), *map(weight, self._norm(0)),
            self.x[0], self.h[0], self.mean[0], self.rstd[0], *self._random(0), length, width, eps, BLOCK=self.block,
        )  # fmt: skip
        for block in range(self.config.n_layer):
            first, second = 2 * block, 2 * block + 1
            self._product(self.h[first], block, 0, self.qkv[block], rows)
            kernels.attention[(self.texts * self.config.n_head,)](
                self.qkv[block], self.o[block], *self._random(3 * block + 1), *self._attention_shape(), num_warps=self._warps()
            )
            x, o = self.x[first], self.o[block]
            if block == self.config.n_layer - 1:
                kernels.gather_last[(self.texts,)](x, o, self.last, self.x_last, self.o_last, length, width, BLOCK=self.block)
                x, o, rows = self.x_last, self.o_last, self.texts
            self._product(o, block, 1, self.y, rows)
            self._add_norm(x, second, 3 * block + 2, rows)
            self._product(self.h[second], block, 2, self.u[block], rows)
            n = rows * 4 * width
            kernels.gelu[(triton.cdiv(n, 2048),)](self.u[block], self.a[block], n, BLOCK=2048)
            self._product(self.a[block], block, 3, self.y, rows)
            self._add_norm(self.x[second], second + 1, 3 * block + 3, rows)

    def _product(self, x: torch.Tensor, block: int, kind: int, out: torch.Tensor, rows: int) -> None:
        """out = x W + b, on the first `rows` rows."""
        name = f"transformer.h.{block}.{MATRICES[kind]}"
        bias, weight = self._view(self.copy, f"{name}.bias"), self._view(self.copy, f"{name}.weight")
        torch.addmm(bias, x[:rows], weight, out=out[:rows])

    def _add_norm(self, x: torch.Tensor, i: int, site: int, rows: int) -> None:
        """x[i] = x + dropout(y), h[i] = norm(x[i])."""
        kernels.add_norm[(rows,)](
            x, self.y, *(self._view(self.flat, name) for name in self._norm(i)), self.x[i], self.h[i], self.mean[i], self.rstd[i],
            *self._random(site), self.width, self.config.layer_norm_epsilon, BLOCK=self.block,
        )  # fmt: skip

    def _attention_shape(self) -> tuple:
        head = self.width // self.config.n_head
        return (head**-0.5, self.length, self.width, self.config.n_head, head, self._attention_block())

    def _attention_block(self) -> int:
        return max(16, triton.next_power_of_2(self.length))

    def _warps(self) -> int:
        return 8 if self._attention_block() > 64 else 4

    def _backward(self) -> None:
        width, depth, length, rows = self.width, self.config.n_layer, self.length, self.texts
        final = 2 * depth
        shape = {"CLASSES": self.config.num_labels, "BLOCK": self.block}
        kernels.head[(rows,)](
            self.h[final], self._view(self.flat, "score.weight"), self.labels, self.count, self.dlogits, self.row_loss,
            self.dh[final], width, **shape,
        )  # fmt: skip
        kernels.head_gradient[(self.config.num_labels,)](
            self.h[final], self.dlogits, self.row_loss, self.losses, self.step,
            self._partials("score.weight"), rows, width, **shape,  # as chunk 0 of its partial sums; the others stay zero
        )  # fmt: skip
        self.dx_last[:rows].zero_()  # nothing but the head reads the last residual
        dx = self.dx_last
        self._norm_backward(final, dx, 3 * depth, rows, dx)
        for block in reversed(range(depth)):
            first, second = 2 * block, 2 * block + 1
            o = self.o_last if block == depth - 1 else self.o[block]
            self._product_backward(self.dy[second + 1], block, 3, self.a[block], self.da, rows)
            n = rows * 4 * width
            kernels.gelu_backward[(triton.cdiv(n, 2048),)](self.u[block], self.da, self.du[block], n, BLOCK=2048)
            self._product_backward(self.du[block], block, 2, self.h[second], self.dh[second], rows)
            self._norm_backward(second, dx, 3 * block + 2, rows, dx)
            if block == depth - 1:
                self._product_backward(self.dy[second], block, 1, o, self.do_last, rows)
                rows = self.rows
                kernels.scatter_last[(rows,)](dx, self.do_last, self.last, self.dx, self.do, length, width, BLOCK=self.block)
                dx = self.dx
            else:
                self._product_backward(self.dy[second], block, 1, o, self.do, rows)
            kernels.attention_backward[(self.texts * self.config.n_head,)](
                self.qkv[block], self.do, self.dqkv[block], *self._random(3 * block + 1), *self._attention_shape(),
                num_warps=self._warps(),
            )  # fmt: skip
            self._product_backward(self.dqkv[block], block, 0, self.h[first], self.dh[first], rows)
            self._norm_backward(first, dx, 3 * block, rows, dx, self.dx0 if block == 0 else None)
            self._on_side(self._block_squares, block)

    def _product_backward(self, dy, block: int, kind: int, x, dx, rows: int) -> None:
        """dx = dy Wᵀ here; the gradients of weight, xᵀ dy, and bias, sum of dy, on the second stream."""
        name = f"transformer.h.{block}.{MATRICES[kind]}"
        self._on_side(self._parameter_gradients, name, x[:rows], dy[:rows])
        torch.mm(dy[:rows], self._view(self.copy, f"{name}.weight").t(), out=dx[:rows])

    def _parameter_gradients(self, name: str, x: torch.Tensor, dy: torch.Tensor) -> None:
        torch.mm(x.t(), dy, out=self._view(self.matrix_gradients, f"{name}.weight"))
        rows, columns = dy.shape
        kernels.column_sums[(triton.cdiv(columns, 128), CHUNKS)](
            dy, self._partials(f"{name}.bias"), rows, columns, self.n_vectors, CHUNKS=CHUNKS, ROWS=64, COLUMNS=128
        )

    def _norm_backward(self, i: int, dx_in, site: int, rows: int, dx_out, dy=None) -> None:
        """From dh[i]: dx_out = dx_in + d norm, dy[i] = its dropped copy; the norm's own gradients on the second stream."""
        weight, bias = self._norm(i)
        kernels.norm_backward[(rows,)](
            self.dh[i], self.x[i], self.mean[i], self.rstd[i], self._view(self.flat, weight), dx_in, dx_out,
            self.dy[i] if dy is None else dy, *self._random(site), self.width, BLOCK=self.block,
        )  # fmt: skip
        self._on_side(self._norm_gradients, i, weight, bias, rows)

    def _norm_gradients(self, i: int, weight: str, bias: str, rows: int) -> None:
        kernels.norm_column_sums[(triton.cdiv(self.width, 64), CHUNKS)](
            self.dh[i], self.x[i], self.mean[i], self.rstd[i], self._partials(weight), self._partials(bias),
            rows, self.width, self.n_vectors, CHUNKS=CHUNKS, ROWS=64, COLUMNS=64,
        )  # fmt: skip

    def _partials(self, name: str) -> torch.Tensor:
        """Where the partial sums of a vector's gradient begin."""
        return self.vector_partials.view(-1)[self.start[name] - self.n_matrices :]

    def _block_squares(self, block: int) -> None:
        """Sums of squares of a block's matrix gradients, while they are still in the cache."""
        n = self.n_matrices // self.config.n_layer
        self._squares(block, self.matrix_gradients[block * n : (block + 1) * n])

    def _squares(self, slot: int, gradients: torch.Tensor) -> None:
        out = self.squares[slot * PARTIALS :]
        optimizer.square_sums[(PARTIALS,)](gradients, out, gradients.numel(), PROGRAMS=PARTIALS, BLOCK=1024)

    def _clip_and_step(self) -> None:
        width, depth = self.width, self.config.n_layer
        optimizer.position_gradient[(self.longest,)](
            self.dx0, self.position_gradients, self.texts, self.length, width, BLOCK=self.block
        )
        optimizer.token_gradient[(self.rows,)](
            self.dx0, self.starts, self.order, self.n_touched, self.token_gradients, width, BLOCK=self.block, ROWS=4
        )
        self._join_side()
        n = self.n_vectors
        optimizer.reduce_partials[(triton.cdiv(n, 512),)](self.vector_partials, self.vector_gradients, n, CHUNKS=CHUNKS, BLOCK=512)
        for slot, gradients in enumerate((self.vector_gradients, self.position_gradients, self.token_gradients[: self.rows])):
            self._squares(depth + slot, gradients)
        optimizer.clip_coefficient[(1,)](self.squares, self.coefficient, len(self.squares), CLIP_NORM, BLOCK=1024)
        m = self.n_matrices
        self._adamw(0, self.matrix_gradients, self.copy)
        self._adamw(m, self.vector_gradients, self.copy[m:])
        self._adamw(self.start["transformer.wpe.weight"], self.position_gradients, None)
        optimizer.adamw_rows[(self.rows,)](
            *self._table("transformer.wte.weight"), self.token_gradients, self.touched, self.n_touched, self.current,
            self.coefficient, self.schedule, self.step, width, **ADAM, BLOCK=self.block,
        )  # fmt: skip
        self.step += 1

    def _adamw(self, start: int, gradients: torch.Tensor, copy: torch.Tensor | None) -> None:
        n = gradients.numel()
        arrays = (flat[start : start + n] for flat in (self.flat, self.exp_avg, self.exp_avg_sq))
        optimizer.adamw[(triton.cdiv(n, 1024),)](
            *arrays, gradients, gradients if copy is None else copy, self.coefficient, self.schedule, self.step, n,
            **ADAM, COPY=copy is not None, BLOCK=1024,
        )  # fmt: skip

    def _on_side(self, work, *arguments) -> None:
        """Do `work` on the second stream, after all that the first has been given so far."""
        if not self.on_gpu:
            work(*arguments)
            return
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            work(*arguments)

    def _join_side(self) -> None:
        if self.on_gpu:
            torch.cuda.current_stream().wait_stream(self.side)

    # State -------------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, torch.Tensor]:
        every_row = torch.arange(self.config.vocab_size, dtype=torch.int32, device=self.device)
        self._catch_up(every_row, torch.tensor([len(every_row)], dtype=torch.int32, device=self.device))
        parts = {"model": self.flat, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {f"{part}.{name}": self._view(flat, name) for part, flat in parts.items() for name in self.start}

    def load(self, tensors: dict[str, torch.Tensor], update: int) -> None:
        for part, flat in (("model", self.flat), ("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)):
            for name in self.start:
                self._view(flat, name).copy_(tensors[f"{part}.{name}"])
        self.copy.copy_(self.flat[: self.n_compute])
        touched = self._view(self.exp_avg_sq, "transformer.wte.weight").any(dim=1)
        self.current.copy_(torch.where(touched, update, -1))
        self.step.fill_(update)

    def facts(self) -> dict:
        return {"step": "fused", "shapes_captured": len(self.graphs), "processes": 1, "micro_batch": self.texts}
