"""The fused step against the plain one. Triton's interpreter runs its kernels on the CPU, slowly,
so the model is small.
"""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import GPT2Config, GPT2ForSequenceClassification

from gpt2_quant.data.tokens import Tokens
from gpt2_quant.training.loop import BETAS, EPS, Plan
from gpt2_quant.training.plain_step import PlainStep

triton = pytest.importorskip("triton")
tl = triton.language

from gpt2_quant.training.fused import attention, kernels, optimizer, parameters  # noqa: E402
from gpt2_quant.training.fused import step as fused_step  # noqa: E402
from gpt2_quant.training.fused.batches import field_sizes, pack  # noqa: E402
from gpt2_quant.training.fused.step import FusedStep  # noqa: E402


def make(dropout: float, layers=2, classes=4, lengths=(3, 8, 1, 5, 8, 2, 4), heads=2):
    """A GPT-2 over 40 tokens with heads of width 16, and texts of these lengths."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = GPT2Config(
        vocab_size=40, n_positions=152, n_embd=16 * heads, n_layer=layers, n_head=heads,
        num_labels=classes, pad_token_id=39,
        embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout,
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases too, which start at zero.
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    random = np.random.default_rng(0)
    flat = random.integers(0, 12, sum(lengths)).astype(np.int32)
    flat[3] = 39  # the padding token as a text's own
    labels = random.integers(0, classes, len(lengths))
    return model, Tokens(flat, np.cumsum([0, *lengths]), labels, 0)


def few_partial_sums():
    """Fewer programs a launch: the interpreter runs them one after another."""
    fused_step.PARTIALS = 4
    fused_step.CHUNKS = parameters.CHUNKS = 3


def assert_same_training(left: dict, right: dict):
    """Tensors of two steps, each within 2e-4 of its largest entry: a weight moves by up to the
    rate, 1e-2, however small its gradient, so where the gradient is all rounding AdamW makes a step
    of it. That is so for the keys' bias, which softmax cancels: it is left out.
    """

    assert left.keys() == right.keys()
    for name, tensor in right.items():
        mine = left[name]
        if name.endswith("c_attn.bias"):
            width = len(tensor) // 3
            mine, tensor = (torch.cat([t[:width], t[2 * width :]]) for t in (mine, tensor))
        torch.testing.assert_close(
            mine, tensor, rtol=0, atol=2e-4 * tensor.abs().max().item(), msg=name
        )


def updates(step, order):
    """Run the batches of `order`; returns losses and tensors."""
    step.begin_epoch(order)
    for number in range(len(order)):
        step.update(number, number)
    return step.losses.clone(), {name: tensor.clone() for name, tensor in step.tensors().items()}


def compare_with_plain():
    """Three updates with no dropout, FP32: tokens come and go between batches, batches are
    incomplete.
    """
    model, tokens = make(0.0)
    plan = Plan(1, 1e-2, 2, 0, "bf16")
    order = [np.array(rows) for rows in ([0, 1], [2], [1, 6])]
    plain = updates(PlainStep(copy.deepcopy(model), tokens, plan, Accelerator(cpu=True)), order)
    fused_model = copy.deepcopy(model)
    step = FusedStep(fused_model, tokens, plan, torch.float32)
    fused = updates(step, order)
    # NaN: updates to come.
    torch.testing.assert_close(fused[0], plain[0], rtol=2e-5, atol=1e-6, equal_nan=True)
    assert_same_training(fused[1], plain[1])
    # What validation runs, rows of the token table that lagged included.
    for name, parameter in fused_model.named_parameters():
        assert torch.equal(parameter, fused[1][f"model.{name}"]), name

    # A checkpoint of one step continues in the other, and in a fused step of its own, the same way.
    following = [np.array([0, 4])]
    again = FusedStep(copy.deepcopy(model), tokens, plan, torch.float32)
    other = PlainStep(copy.deepcopy(model), tokens, plan, Accelerator(cpu=True))
    for resumed in (again, other):
        resumed.load(fused[1], len(order))
        resumed.begin_epoch(following)
        resumed.update(len(order), 0)
    assert_same_training(again.tensors(), other.tensors())


def deep_long_and_of_many_classes():
    """More layers than six bits of the dropout key count, more classes than a tile of the head, and
    a text longer than attention does in one piece, against the plain step.
    """
    # At a rate of 1e-5 weights differ by less than their tolerance: moments are compared.
    for layers, classes, lengths in ((22, 7, (8,)), (1, 2, (150, 70))):
        model, tokens = make(0.0, layers, classes, lengths, heads=1)
        plan, order = Plan(1, 1e-5, len(lengths), 0, "bf16"), [np.arange(len(lengths))]
        fused = updates(FusedStep(copy.deepcopy(model), tokens, plan, torch.float32), order)
        plain = updates(PlainStep(model, tokens, plan, Accelerator(cpu=True)), order)
        torch.testing.assert_close(fused[0], plain[0], rtol=2e-5, atol=1e-6, equal_nan=True)
        assert_same_training(fused[1], plain[1])


def attention_in_tiles_is_attention():
    """With dropout, forward and backward, four tiles against all in one piece: the same numbers in
    another order of summation.
    """
    torch.manual_seed(0)
    texts, length, heads, head = 2, 50, 2, 16
    width = heads * head
    qkv, do = torch.randn(texts * length, 3 * width), torch.randn(texts * length, width)
    scale = torch.tensor([1 / 0.7]).view(torch.int32).item()
    random = torch.tensor([5, 7, int(0.3 * 2**32), scale], dtype=torch.int32)
    rest = random, 70, 3, head**-0.5, length, width
    shape = {"HEADS": heads, "HEAD": head}
    o, dqkv, o_tiled, dqkv_tiled = (torch.zeros_like(t) for t in (do, qkv) * 2)
    log_sum = torch.zeros(texts, heads, length)
    one, tiles = (texts * heads,), (texts * heads, 4)
    attention.whole[one](qkv, o, *rest, **shape, BLOCK=64)
    attention.whole_backward[one](qkv, do, dqkv, *rest, **shape, BLOCK=64)
    attention.tiled[tiles](qkv, o_tiled, log_sum, *rest, **shape, BLOCK=16)
    outputs = qkv, o_tiled, log_sum, do, dqkv_tiled
    attention.tiled_backward[tiles](*outputs, *rest, **shape, BLOCK=16)
    # Sums of up to 50 terms below about 10.
    torch.testing.assert_close(o_tiled, o, rtol=0, atol=50 * 2**-24 * 10)
    torch.testing.assert_close(dqkv_tiled, dqkv, rtol=0, atol=50 * 2**-24 * 10)


def two_processes_train_as_one(process: str = "", port: str = ""):
    """Five updates with dropout; batches of three, two and one, on processes with two texts each.
    Losses and weights equal one process's but for the order of sums; both have the same bits.
    """
    model, tokens = make(0.3, layers=1, heads=1)
    order = [np.array(rows) for rows in ([0, 1, 2], [3, 6], [5], [4, 2, 6], [1, 2, 3])]
    # A rate so low that rounding does not grow into steps of AdamW.
    plan = Plan(4, 1e-4, 3, 0, "bf16")
    share = (int(process), 2) if process else (0, 1)
    if process:
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", address, rank=share[0], world_size=2)
        losses, tensors = updates(FusedStep(model, tokens, plan, torch.float32, *share), order)
        everyone: list = [None, None]
        torch.distributed.all_gather_object(everyone, (losses, tensors))
        torch.distributed.destroy_process_group()
        if share[0]:
            return
        (_, first), (other_losses, second) = everyone
        assert torch.equal(losses.nan_to_num(), other_losses.nan_to_num())
        assert all(torch.equal(first[name], second[name]) for name in first)
        alone = updates(
            FusedStep(make(0.3, layers=1, heads=1)[0], tokens, plan, torch.float32), order
        )
        torch.testing.assert_close(losses, alone[0], rtol=2e-5, atol=1e-6, equal_nan=True)
        assert_same_training(tensors, alone[1])
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, __file__, "two_processes_train_as_one"]
    both = [subprocess.Popen([*command, str(rank), port]) for rank in (0, 1)]
    assert [one.wait() for one in both] == [0, 0]


def rows_that_missed_many_updates():
    """300 missed updates, more than are gone through one by one, and none: as AdamW with zero
    gradients leaves them.
    """
    torch.manual_seed(0)
    width, had, now = 8, 40, 340
    schedule = optimizer.schedule(np.full(now, 1e-3))
    p, m, v = torch.randn(4, width), 1e-2 * torch.randn(4, width), 1e-4 * torch.rand(4, width)
    before, expected = [t.clone() for t in (p, m, v)], [t[1].double() for t in (p, m, v)]
    for update in range(had, now):
        expected[1] *= BETAS[0]
        expected[2] *= BETAS[1]
        rate, scale = schedule[update]
        expected[0] -= rate * expected[1] / (expected[2].sqrt() * scale + EPS)
    rows = torch.tensor([1, 2, 3], dtype=torch.int32)
    current = torch.tensor([had, had, now, -1], dtype=torch.int32)
    optimizer.catch_up[(3,)](
        p, m, v, rows, torch.tensor([3]), current, schedule, torch.tensor([now]), width,
        BLOCK=width,
    )  # fmt: skip
    for mine, exact in zip((p, m, v), expected, strict=True):
        atol = 1e-6 if mine is p else 0
        torch.testing.assert_close(mine[1].double(), exact, rtol=1e-4, atol=atol)
    for mine, old in zip((p, m, v), before, strict=True):
        # Not asked for, up to date, never had a gradient.
        assert all(torch.equal(mine[i], old[i]) for i in (0, 2, 3))
    assert current.tolist() == [had, now, now, -1]


def same_seed_same_bits():
    """With dropout: two runs are equal in every bit, another seed is not, and losses differ from
    those without dropout.
    """
    order = [np.array([3, 6])]
    runs = []
    for dropout, seed in ((0.3, 0), (0.3, 0), (0.3, 1), (0.0, 0)):
        model, tokens = make(dropout, layers=1)
        runs.append(updates(FusedStep(model, tokens, Plan(1, 1e-2, 2, seed, "bf16")), order))
    first, second, other_seed, without = runs
    assert first[0][0] == second[0][0]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert first[0][0] != other_seed[0][0] and first[0][0] != without[0][0]
    assert torch.isfinite(first[0][: len(order)]).all()


@triton.jit
def words(out, seed, update, site, n: tl.constexpr):
    index = tl.arange(0, n)
    word = kernels.random_word(tl.load(seed), tl.load(update), site, index)
    tl.store(out + index, word.to(tl.int64))


def dropout_keeps_the_right_share():
    """Masks of 20,000 elements over updates and sites: share kept within 5 sigma, neighbours
    uncorrelated.
    """
    n, kept = 1 << 15, []
    for update, site in ((0, 0), (0, 1), (1, 0), (8789, 36), (0, 64)):
        out = torch.zeros(n, dtype=torch.int64)
        seed, now = torch.tensor([[7], [update]], dtype=torch.int32)
        words[(1,)](out, seed, now, site, n)
        kept.append((out.numpy() >= 0.1 * 2**32).astype(float))
    sigma = (0.9 * 0.1 / n) ** 0.5
    for mask in kept:
        assert abs(mask.mean() - 0.9) < 5 * sigma
        for lag in (1, 2, 768):
            assert abs(np.corrcoef(mask[:-lag], mask[lag:])[0, 1]) < 5 / n**0.5
    between = np.corrcoef(kept) - np.eye(len(kept))
    assert np.abs(between).max() < 5 / n**0.5


@pytest.mark.parametrize(
    "check",
    [
        "compare_with_plain",
        "deep_long_and_of_many_classes",
        "attention_in_tiles_is_attention",
        "two_processes_train_as_one",
        "rows_that_missed_many_updates",
        "same_seed_same_bits",
        "dropout_keeps_the_right_share",
    ],
)
def test_in_the_interpreter(check):
    """The interpreter is chosen when Triton is imported, hence a process of its own."""
    ours = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": "src"}
    command, root = [sys.executable, __file__, check], Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command, env=os.environ | ours, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_packing_a_batch_by_hand():
    flat = np.array([5, 6, 5, 7], dtype=np.int32)
    tokens = Tokens(flat, np.array([0, 3, 4]), np.array([2, 0]), 0)
    length, values = pack(tokens, np.array([1, 0]), texts=3, pad_id=9)
    fields = np.split(values, np.cumsum(field_sizes(3, 8))[:-1])
    ids, last, labels, count, n, touched, order, starts = fields
    assert length == 8
    padded = [[7, 9, 9, 9], [5, 6, 5, 9], [9, 9, 9, 9]]
    np.testing.assert_array_equal(ids.reshape(3, 8)[:, :4], padded)
    assert last.tolist() == [0, 10, 16] and labels.tolist() == [0, 2, -1]
    assert count.tolist() == [2] and n.tolist() == [3]
    assert touched[:3].tolist() == [5, 6, 7] and order[:4].tolist() == [8, 10, 9, 0]
    assert starts[:4].tolist() == [0, 2, 3, 4]


@pytest.mark.gpu
def test_captured_graphs_train_as_the_interpreter_does():
    """On a GPU, bf16, 3 updates a shape: the loss follows the plain FP32 step's within bf16's
    rounding (2**-8 of a loss near 2).
    """
    model, tokens = make(0.0)
    plan, order = Plan(9, 1e-3, 4, 0, "bf16"), [np.array([0, 1, 2, 3]), np.array([4, 5, 6, 1])] * 4
    plain = updates(PlainStep(copy.deepcopy(model).cuda(), tokens, plan, Accelerator()), order)[0]
    fused = updates(FusedStep(copy.deepcopy(model).cuda(), tokens, plan), order)[0]
    torch.testing.assert_close(fused[: len(order)], plain[: len(order)], rtol=0, atol=0.03)


@pytest.mark.gpu
def test_a_medium_gpt2_trains_as_near_to_float32_as_autocast_does():
    """Losses of twelve updates without dropout, and the weights after them."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=1024, n_layer=24, n_head=16, num_labels=4, pad_token_id=50256,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config).cuda()
    rng = np.random.default_rng(0)
    lengths, texts, n_updates = rng.integers(16, 96, 192), 16, 12
    flat = rng.integers(0, 50256, lengths.sum()).astype(np.int32)
    tokens = Tokens(flat, np.cumsum([0, *lengths]), rng.integers(0, 4, 192), 0)
    plan = Plan(1, 1e-4, texts, 0, "bf16")
    order = list(np.arange(192).reshape(n_updates, texts))

    def plain(precision: str):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(mixed_precision=precision)
        return updates(PlainStep(copy.deepcopy(model), tokens, plan, accelerator), order)

    exact, autocast = plain("no"), plain("bf16")
    AcceleratorState._reset_state(reset_partial_state=True)  # as the other tests expect it
    fused = updates(FusedStep(copy.deepcopy(model), tokens, plan), order)

    def apart(found) -> tuple[float, float]:
        """From `exact`: rms of losses, and of weights relative to how far these have moved."""
        moved = off = 0.0
        for name, parameter in model.named_parameters():
            name = f"model.{name}"
            moved += float((exact[1][name] - parameter.detach()).double().square().sum())
            off += float((found[1][name] - exact[1][name]).double().square().sum())
        return float((found[0] - exact[0]).square().mean().sqrt()), (off / moved) ** 0.5

    of_autocast, of_fused = apart(autocast), apart(fused)
    for name, (losses, weights) in {"autocast": of_autocast, "fused": of_fused}.items():
        print(f"{name} from FP32: losses {losses:.2e} nats (rms), changes of weights {weights:.2%}")
    # One draw of rounding errors against another of the same size.
    assert all(mine < 2 * its for mine, its in zip(of_fused, of_autocast, strict=True))


if __name__ == "__main__":
    few_partial_sums()
    globals()[sys.argv[1]](*sys.argv[2:])
