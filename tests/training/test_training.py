"""The fine-tuning loop: rates, batches, faults, interruptions; checkpoints that are whole, refused
or passed over.
"""

import copy
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_models import ROOT, make_tiny_gpt2
from torch.nn.functional import cross_entropy

from gpt2_quant.data.datasets import Split
from gpt2_quant.data.tokens import length_grouped_batches, pad_batch, tokenize
from gpt2_quant.errors import UserError
from gpt2_quant.training.checkpoints import Checkpoints, checksum, exclusive
from gpt2_quant.training.evaluation import Scorer, select_rows
from gpt2_quant.training.loop import Plan, Training, curve
from gpt2_quant.training.plain_step import PlainStep
from gpt2_quant.training.run import finished

PLAN = Plan(epochs=2, learning_rate=1e-3, batch_size=8, seed=3, precision="fp32")


@pytest.fixture(scope="module")
def tokens(tiny_texts, tiny_tokenizer):
    texts, labels = tiny_texts
    return tokenize(tiny_tokenizer, Split("train", texts[:60], labels[:60], "test"), 24)


@pytest.fixture(scope="module")
def base(tiny_tokenizer):
    return make_tiny_gpt2(tiny_tokenizer)


@pytest.fixture
def quiet(base):
    """Without dropout."""
    model = copy.deepcopy(base)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def mean_loss(step) -> dict:
    return {"accuracy": 0.25, "loss": step.losses.nanmean().item()}


def run(base, tokens, folder, plan=PLAN, minutes=60.0, step_class=PlainStep, validate=mean_loss):
    """Train a copy of `base`; returns (best weights, progress, step)."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    step = step_class(copy.deepcopy(base), tokens, plan, accelerator)
    validate = partial(validate, step)
    checkpoints = Checkpoints(folder, {"--seed": "3"}, minutes)
    return *Training(step, tokens, plan, validate, checkpoints, accelerator).run(), step


def test_learning_rate_rises_over_six_percent_of_the_updates_and_falls_to_almost_zero():
    rates = Plan(3, 2e-5, 16, 0, "fp32").learning_rates(1_000)  # 3 x 63 updates, 12 of them warm-up
    assert len(rates) == 189
    np.testing.assert_allclose(rates[[0, 5, 11]], [2e-5 / 12, 1e-5, 2e-5], rtol=1e-6)
    np.testing.assert_allclose(rates[[12, 188]], [2e-5, 2e-5 / 177], rtol=1e-6)
    assert Plan(3, 2e-5, 16, 0, "fp32", max_steps=50).updates(1_000) == 50


def test_an_update_is_adamw_on_the_clipped_gradient_of_the_mean_loss(quiet, tokens, tmp_path):
    """Two updates of the loop against the textbook, written with autograd and plain arithmetic."""
    reference = copy.deepcopy(quiet)
    plan = Plan(1, 1e-3, 8, 3, "fp32", max_steps=2)
    weights, progress, step = run(quiet, tokens, tmp_path, plan)
    moments = {n: torch.zeros(2, *p.shape) for n, p in reference.named_parameters()}
    batches = length_grouped_batches(tokens.lengths, 8, 3, 0)
    rates = plan.learning_rates(len(tokens))
    for t in (1, 2):
        batch = pad_batch(tokens, batches[t - 1], reference.config.pad_token_id)
        labels = batch.pop("labels")
        loss = cross_entropy(reference(**batch).logits, labels)
        assert step.losses[t - 1].item() == pytest.approx(loss.item(), rel=1e-5)
        gradients = torch.autograd.grad(loss, list(reference.parameters()), allow_unused=True)
        norm = torch.sqrt(sum(g.square().sum() for g in gradients))
        for (name, p), g in zip(reference.named_parameters(), gradients, strict=True):
            g = g * min(1.0, 1.0 / (norm.item() + 1e-6))
            m, v = moments[name]
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            with torch.no_grad():
                p -= float(rates[t - 1]) * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    for name, p in reference.named_parameters():
        # An FP32 update of 1e-3 is known to about 1e-3 of itself where m and v are near AdamW's
        # eps.
        torch.testing.assert_close(weights[name], p.detach(), rtol=1e-5, atol=5e-6)
    assert progress.update == 2


def test_every_row_is_trained_on_once_an_epoch_in_the_order_of_seed_and_epoch(
    base, tokens, tmp_path
):
    seen = []

    class Recording(PlainStep):
        def update(self, number, batch):
            seen.append(self.batches[batch])
            super().update(number, batch)

    run(base, tokens, tmp_path, step_class=Recording)
    expected = length_grouped_batches(tokens.lengths, 8, 3, 0)
    assert [rows.tolist() for rows in seen[:8]] == [rows.tolist() for rows in expected]
    for epoch in (seen[:8], seen[8:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(60))


def test_the_best_epoch_is_the_most_accurate_then_the_one_with_least_loss(base, tokens, tmp_path):
    plan = Plan(4, 1e-3, 32, 0, "fp32")
    answers = iter([(0.5, 2.0), (0.7, 1.5), (0.7, 1.2), (0.6, 0.1)])
    kept = {}

    def validate(step):
        accuracy, loss = next(answers)
        kept[loss] = step.named["score.weight"].detach().clone()
        return {"accuracy": accuracy, "loss": loss}

    weights, progress, _ = run(base, tokens, tmp_path, plan, validate=validate)
    assert progress.best["epoch"] == 3
    assert torch.equal(weights["score.weight"], kept[1.2])


def test_validation_sees_what_a_step_puts_off(base, tokens, tmp_path):
    """A step may write some weights only when it is asked for its tensors, as the fused one does
    with rows of the token table.
    """

    class Late(PlainStep):
        late = 0

        def update(self, number, batch):
            super().update(number, batch)
            self.late += 1

        def tensors(self):
            self.late = 0
            return super().tensors()

    seen = []

    def validate(step):
        seen.append(step.late)
        return {"accuracy": 0.5, "loss": 1.0}

    run(base, tokens, tmp_path, Plan(2, 1e-3, 32, 0, "fp32"), 60, Late, validate)
    assert seen == [0, 0]


def test_the_curve_has_a_row_an_update_window_and_validation_at_epoch_ends():
    plan = Plan(2, 1e-3, 8, 0, "fp32")
    losses = torch.arange(1200, dtype=torch.float32)
    validations = [
        {"epoch": 1, "update": 600, "loss": 0.5, "accuracy": 0.8},
        {"epoch": 2, "update": 1200, "loss": 0.4, "accuracy": 0.9},
    ]
    frame = curve(losses, plan, 4800, validations)
    assert len(frame) == 400 and frame["step"].iloc[-1] == 1200  # windows of three
    assert frame["train_loss"].iloc[0] == 1.0  # mean of 0, 1, 2
    accuracies = frame.set_index("step")["validation_accuracy"].dropna()
    assert accuracies.to_dict() == {600: 0.8, 1200: 0.9}


# Interruptions


def _train_in_child(base, tokens, folder, minutes):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    weights, _, step = run(base, tokens, folder, Plan(5, 1e-3, 8, 3, "fp32"), minutes=minutes)
    save_file({**weights, "losses": step.losses}, folder / "end.safetensors")
    os._exit(0)


def kill_and_resume(folder: Path) -> None:
    """Train whole in one folder; in another, start until it ends, killing the first ten starts. In
    a process of its own, since the children are forks, and a fork of a process with threads (a
    progress bar's) may hang.
    """
    from gpt2_quant.data.demo import generate_corpus, train_tokenizer

    titles, _, labels = generate_corpus(60, seed=7)
    tokenizer = train_tokenizer(titles, vocab_size=400)
    tokens = tokenize(tokenizer, Split("train", titles, labels, "test"), 24)
    base, context = make_tiny_gpt2(tokenizer), multiprocessing.get_context("fork")
    draw, kills = random.Random(0), 0
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    child = context.Process(target=_train_in_child, args=(base, tokens, folder / "whole", 60.0))
    child.start()
    child.join()
    while not (folder / "killed" / "end.safetensors").exists():
        child = context.Process(target=_train_in_child, args=(base, tokens, folder / "killed", 0.0))
        before = set((folder / "killed").glob("update-*"))
        child.start()
        if kills < 10:
            # Wait until it got further than the one before, so that ten kills do not stop it ten
            # times at the start.
            while set((folder / "killed").glob("update-*")) <= before and child.is_alive():
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.03))
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
    assert kills == 10


@pytest.mark.e2e
def test_ten_kills_at_random_moments_change_no_bit(tmp_path):
    """SIGKILL, with a checkpoint after every update: most kills meet one being written."""
    path = f"{ROOT / 'src'}:{ROOT / 'tests'}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, killed = (load_file(tmp_path / name / "end.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert len(list((tmp_path / "killed").glob("update-*"))) == 2
    assert not list((tmp_path / "killed").glob(".update-*"))


def test_an_interrupt_finishes_the_update_and_checkpoints_it(base, tokens, tmp_path):
    class Interrupted(PlainStep):
        def update(self, number, batch):
            if number == 5:
                os.kill(os.getpid(), signal.SIGINT)
            super().update(number, batch)

    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run(base, tokens, tmp_path, step_class=Interrupted)
    assert [path.name for path in tmp_path.glob("update-*")] == ["update-00000006.safetensors"]
    state = Checkpoints(tmp_path, {"--seed": "3"}, 60).load()[1]
    # The time is that of its six updates.
    assert state["update"] == 6 and 0 < state["training_s"] <= time.perf_counter() - started
    _, progress, _ = run(base, tokens, tmp_path)
    assert progress.resumed_from == [6] and progress.update == 16


def test_a_process_that_does_not_write_checkpoints_asks_for_none(base, tokens, tmp_path):
    """Its clock is never set back: from the first interval on, all would save at every update."""
    second = SimpleNamespace(
        num_processes=2, is_main_process=False, device=torch.device("cpu"),
        reduce=lambda tensor, how: tensor, log=lambda values, update: None,
    )  # fmt: skip

    def times_collected(minutes: float) -> int:
        count = itertools.count()

        class Counting(PlainStep):
            def tensors(self):
                next(count)
                return super().tensors()

        torch.set_num_threads(1)
        step = Counting(copy.deepcopy(base), tokens, PLAN, Accelerator(cpu=True))
        checkpoints = Checkpoints(tmp_path, {}, minutes)
        Training(step, tokens, PLAN, partial(mean_loss, step), checkpoints, second).run()
        return next(count)

    assert times_collected(minutes=0.0) == times_collected(minutes=60.0)


# Checkpoints


@pytest.fixture
def two_checkpoints(tmp_path):
    """Checkpoints after updates 1 and 2, each with one tensor that holds that number."""
    checkpoints = Checkpoints(tmp_path, {"--learning-rate": "2e-05", "train data": "abc"}, 60)
    for update in (1, 2):
        tensors = {"model.x": torch.full((1000,), float(update))}
        checkpoints.save(tensors, {"update": update, "epoch": 0})
    checkpoints.wait()
    return checkpoints


@pytest.mark.parametrize("damage", ["cut short", "one bit", "empty", "not safetensors"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(two_checkpoints, damage, capsys):
    newest = two_checkpoints.folder / "update-00000002.safetensors"
    content = bytearray(newest.read_bytes())
    if damage == "one bit":
        content[-100] ^= 4
    damaged = {"cut short": content[:-50], "empty": b"", "not safetensors": b"x" * 100}
    newest.write_bytes(damaged.get(damage, content))
    tensors, progress = two_checkpoints.load()
    assert progress == {"update": 1, "epoch": 0} and tensors["model.x"][0] == 1
    assert "update-00000002.safetensors is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [("--learning-rate", "0.0001"), ("train data", "xyz"), ("code version", "new")],
)
def test_a_checkpoint_of_another_training_is_refused_by_name(two_checkpoints, name, value):
    two_checkpoints.identity = two_checkpoints.identity | {name: value}
    with pytest.raises(UserError, match=f"{name} .*, and this one has {value}.*rm -r"):
        two_checkpoints.load()


def test_a_full_disk_leaves_the_previous_checkpoint_whole(two_checkpoints):
    """The kernel's limit on a file's size stands in for the disk's end: the write fails half-way
    with an error.
    """
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        with pytest.raises((OSError, SafetensorError), match="too large"):
            two_checkpoints.save({"model.x": torch.zeros(100_000)}, {"update": 3, "epoch": 0})
            two_checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert two_checkpoints.load()[1]["update"] == 2
    assert [path.name for path in two_checkpoints.folder.glob(".*")] == []


def test_one_flipped_bit_changes_the_sum_whatever_the_shape():
    small, half = torch.ones(3, dtype=torch.uint8), torch.ones(4, 4).bfloat16()
    for tensor in (torch.tensor(1.0), small, torch.ones(5, 7), half):
        other = tensor.clone()
        other.view(-1).view(torch.uint8)[-1] ^= 1
        assert checksum(other) != checksum(tensor)


def test_a_second_training_into_a_folder_is_refused(tmp_path):
    with exclusive(tmp_path):
        with (
            pytest.raises(UserError, match=f"in use by another training .process {os.getpid()}"),
            exclusive(tmp_path),
        ):
            pass
        with exclusive(tmp_path, hold=False):  # the other processes of the same run
            pass
    assert not list(tmp_path.iterdir())  # what fails at its start leaves nothing either
    with pytest.raises(KeyError), exclusive(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "[]", "null", "{}", '{"identity": 1}'])
def test_a_damaged_outcome_counts_as_none(tmp_path, text):
    (tmp_path / "config.json").touch()
    (tmp_path / "outcome.json").write_text(text)
    assert finished(Checkpoints(tmp_path, {}, minutes=1), tmp_path, scored=False) is None


# Faults


def test_a_loss_that_is_not_finite_stops_with_update_rate_and_rows(base, tokens, tmp_path):
    class Broken(PlainStep):
        def update(self, number, batch):
            super().update(number, batch)
            if number == 4:
                self.losses[number] = float("nan")

    with pytest.raises(UserError, match="loss of update 5 is nan") as caught:
        run(base, tokens, tmp_path, minutes=0.0, step_class=Broken)
    rows = length_grouped_batches(tokens.lengths, 8, 3, 0)[4].tolist()
    rate = PLAN.learning_rates(len(tokens))[4]
    assert f"train rows {rows}" in str(caught.value) and f"{rate:.2e}" in str(caught.value)
    assert Checkpoints(tmp_path, {"--seed": "3"}, 60).load()[1]["update"] == 4


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_update(quiet, tokens, tmp_path):
    """Memory for three texts at once: 8 -> 4 -> 2, gradients that add up to the batch's."""
    tried = []

    class Small(PlainStep):
        def _add_gradient(self, rows, weight):
            tried.append(len(rows))
            if len(rows) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return super()._add_gradient(rows, weight)

    plan = Plan(1, 1e-3, 8, 3, "fp32", max_steps=3)
    weights, _, step = run(quiet, tokens, tmp_path / "small", plan, step_class=Small)
    expected, _, _ = run(quiet, tokens, tmp_path / "large", plan)
    assert tried[:3] == [8, 4, 2] and set(tried[3:]) == {2}
    assert step.facts()["micro_batch"] == 2
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=2e-5)


def test_predictions_of_one_process_come_in_the_order_of_the_rows(base, tokens):
    pad_id = base.config.pad_token_id
    predict = Scorer(Accelerator(cpu=True), {}, pad_id).predict
    logits = predict(base, tokens, 16, pad_id, "test")
    rows = np.array([5, 0, 59])
    part = predict(base, select_rows(tokens, rows), 16, pad_id, "test")
    np.testing.assert_allclose(part, logits[rows], atol=1e-5)


if __name__ == "__main__":
    kill_and_resume(Path(sys.argv[1]))
