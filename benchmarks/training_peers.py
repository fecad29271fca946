"""The trainings that bench_training.py compares: our step, and transformers' Trainer.

Each takes what `prepare` gave and a seed, and returns (model, seconds of the updates timed, their
number).

trainer_best gets what it takes to compile once: lengths dynamic from the start (Accelerate's own
switch), and the kind of problem named in the config, which transformers else writes there in the
first forward pass, and torch.compile compiles anew.
"""

import math
import os
import time
from dataclasses import replace

from gpt2_quant import cli as common

BEST = {"bf16": True, "tf32": True, "train_sampling_strategy": "group_by_length"}
VARIANTS = {  # name: (what it is, Trainer's arguments; None for our own loop)
    "ours": ("this repository", None),
    "trainer_bf16": ("Trainer, bf16, tf32, dynamic padding, grouped by length", BEST),
    "trainer_best": ("the same with torch.compile", BEST | {"torch_compile": True}),
    # Last: the slowest, and what a shortage of time costs least.
    "trainer_default": ("Trainer, defaults, padded to 128", {}),
}
EVERY_SEED = ("ours", "trainer_default")
COMPARED_ROWS = 1_000  # validation rows that every variant is scored on


def prepare(args):
    """Settings, base folder, tokenizer, and tokens of train and of the compared validation rows."""
    import numpy as np

    from gpt2_quant.data.datasets import load_splits
    from gpt2_quant.data.hub import fetch_model_folder
    from gpt2_quant.data.tokens import load_tokenizer, tokenize
    from gpt2_quant.training.evaluation import select_rows

    settings = common.settings_from(args)
    splits = load_splits(settings)
    base = fetch_model_folder(settings.base_model, settings.base_revision)
    tokenizer = load_tokenizer(base)
    # No cache of tokens: the first variant would fill it for the others, and tokenizing is a part
    # of the cold time.
    train, validation = (
        tokenize(tokenizer, replace(splits[name], cache=None), settings.max_length)
        for name in ("train", "validation")
    )
    kept = np.arange(min(COMPARED_ROWS, len(validation)))
    return settings, base, tokenizer, train, select_rows(validation, kept)


def plan_of(args, settings, rows: int, seed: int):
    from gpt2_quant.training.loop import Plan

    epochs = math.ceil(args.updates * settings.batch_size / rows)
    precision = "bf16" if settings.device == "cuda" else "fp32"
    rest = settings.batch_size, seed, precision, args.updates
    return Plan(epochs, args.learning_rate, *rest)


def wait(device: str) -> float:
    """The time, once the device has done all it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def train_ours(args, settings, base, tokenizer, train, seed):
    """Our loop's batches through our step."""
    from accelerate import Accelerator

    from gpt2_quant.data.tokens import length_grouped_batches
    from gpt2_quant.models.loading import load_classifier
    from gpt2_quant.training.fused.batches import padded_length
    from gpt2_quant.training.run import choose_step

    common.seed_everything(seed)
    plan = plan_of(args, settings, len(train), seed)
    precision = "bf16" if plan.precision == "bf16" else "no"
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=precision)
    model = load_classifier(base, settings.device, new_head=True)
    step = choose_step(model, train, plan, accelerator)
    number, timed, seconds, met = 0, 0, 0.0, set()
    for epoch in range(plan.epochs):
        batches = length_grouped_batches(train.lengths, plan.batch_size, seed, epoch)
        batches = batches[: args.updates - number]
        step.begin_epoch(batches)
        start = wait(settings.device)
        for batch, rows in enumerate(batches):
            length = padded_length(int(train.lengths[rows].max()))
            captured = settings.device == "cuda" and length not in met
            untimed = captured or number < args.updates // 3
            if untimed:  # stop the clock while this one runs
                seconds += wait(settings.device) - start
            step.update(number, batch)
            if untimed:
                start = wait(settings.device)
            timed += not untimed
            number += 1
            met.add(length)
        seconds += wait(settings.device) - start
    step.tensors()  # brings the model's own weights up to date
    return model, seconds, timed


def train_trainer(args, settings, base, tokenizer, train, seed, options):
    """transformers' Trainer on the same rows."""
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    from gpt2_quant.models.loading import load_classifier

    common.seed_everything(seed)
    warm, at = args.updates // 3, {}

    class Clock(TrainerCallback):
        def on_step_end(self, arguments, state, control, **kwargs):
            if state.global_step in (warm, args.updates):
                at[state.global_step] = wait(settings.device)

    labels = train.labels.tolist()
    rows = [{"input_ids": train.row(i).tolist(), "labels": label} for i, label in enumerate(labels)]
    model = load_classifier(base, settings.device, new_head=True)
    if settings.device == "cpu":  # without a GPU Trainer refuses tf32
        options = {name: value for name, value in options.items() if name != "tf32"}
    if "torch_compile" in options:
        os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "1"
        model.config.problem_type = "single_label_classification"
    arguments = TrainingArguments(
        output_dir=str(settings.models_dir / "bench_trainer"), max_steps=args.updates,
        per_device_train_batch_size=settings.batch_size, learning_rate=args.learning_rate,
        warmup_steps=math.ceil(0.06 * args.updates), seed=seed, save_strategy="no",
        report_to="none", use_cpu=settings.device == "cpu", disable_tqdm=True,
        logging_steps=args.updates, **options,
    )  # fmt: skip
    padding = {"padding": "longest", "pad_to_multiple_of": 8}
    if not options:
        padding = {"padding": "max_length", "max_length": settings.max_length}
    collator = DataCollatorWithPadding(tokenizer, **padding)
    trainer = Trainer(model, arguments, collator, rows, callbacks=[Clock()])
    trainer.train()
    return model, at[args.updates] - at[warm], args.updates - warm
