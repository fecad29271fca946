"""From settings to a saved classifier: what one run of script 1 puts together, and what it leaves
on the disk.

A run trains one model a seed. The first seed's is the baseline that the other scripts quantize;
further seeds are trained to learn how far scores move by chance alone, and only their scores are
kept. Whatever is finished is noted as `outcome.json` in the seed's training folder, so a run that
is stopped between two seeds, or before its evaluation, does not train again.
"""

import hashlib
import importlib.util
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from scipy.special import log_softmax

from .. import records
from ..cli import Settings, seed_everything
from ..data.datasets import Split, load_splits
from ..data.hub import fetch_model_folder
from ..data.tokens import Tokens, load_tokenizer, tokenize
from ..errors import UserError
from ..measure import figures as plots
from ..measure import scores
from ..models.loading import load_classifier, weights_file
from ..models.variants import BASELINE
from .checkpoints import Checkpoints
from .loop import Plan, TrainingStep, curve, train
from .plain_step import PlainStep, gathered_predict

FOLDER = BASELINE.folder
EVALUATION_BATCH = 64

# A fresh head and how far a file has been read are no news.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass
class Run:
    """Everything that the seeds of one run share."""

    settings: Settings
    plan: Plan
    accelerator: Accelerator
    checkpoint_minutes: float

    def __post_init__(self):
        max_length = self.settings.max_length
        with (
            self.accelerator.main_process_first()
        ):  # the first to ask for it makes or downloads what is not there yet
            self.splits: dict[str, Split] = load_splits(self.settings)
            self.base = fetch_model_folder(self.settings.base_model, self.settings.base_revision)
            self.tokenizer = load_tokenizer(self.base)
            self.tokens = {
                name: tokenize(self.tokenizer, split, max_length)
                for name, split in self.splits.items()
            }
        self.predict = gathered_predict(self.accelerator)
        if self.settings.device == "cuda":
            self.predict = in_large_batches(self.predict)

    @property
    def folder(self) -> Path:
        """The baseline's own folder."""
        return self.settings.models_dir / FOLDER

    def training_folder(self, seed: int) -> Path:
        """Where the checkpoints of a seed are kept while it is trained."""
        return self.settings.models_dir / f"{FOLDER}.training" / f"seed-{seed}"

    def identity(self, plan: Plan) -> dict[str, str]:
        """What must be the same for a checkpoint to be continued, by the names that a user knows."""
        here, data = Path(__file__).parent, Path(__file__).parents[1] / "data"
        sources = sorted([data / "datasets.py", data / "tokens.py", *here.rglob("*.py")])
        code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
        return {
            "--base-model weights": records.file_sha256(weights_file(self.base))[:16],
            "--batch-size": str(plan.batch_size),
            "--epochs": str(plan.epochs),
            "--learning-rate": str(plan.learning_rate),
            "--max-length": str(self.settings.max_length),
            "--max-steps": str(plan.max_steps),
            "--precision": plan.precision,
            "--seed": str(plan.seed),
            "device": self.settings.device,
            "number of processes": str(self.accelerator.num_processes),
            "train data": self.splits["train"].sha256[:16],
            "validation data": self.splits["validation"].sha256[:16],
            "code version": code[:16],
            "torch version": torch.__version__,
            "transformers version": transformers.__version__,
        }

    def train_all(self, seeds: list[int]) -> list[dict]:
        """Train once a seed; the first one's model goes to `folder`. Returns the outcomes, with
        test scores if several.
        """
        outcomes = []
        for seed in seeds:
            folder = self.folder if seed == seeds[0] else self.training_folder(seed) / "model"
            outcome = self.train_seed(replace(self.plan, seed=seed), folder)
            if len(seeds) > 1:
                outcome = outcome | {"test": self.test_scores(folder)}
            outcomes.append(outcome)
        return outcomes

    def train_seed(self, plan: Plan, folder: Path) -> dict:
        """Train with `plan.seed`, save the best epoch's model to `folder`; returns what the record
        says of it.

        Returns at once, with what was noted then, where this very training is complete.
        """
        checkpoints = Checkpoints(
            self.training_folder(plan.seed), self.identity(plan), self.checkpoint_minutes
        )
        noted = checkpoints.folder / "outcome.json"
        if noted.is_file() and (folder / "config.json").is_file():
            outcome = json.loads(noted.read_text(encoding="utf-8"))
            if outcome["identity"] == checkpoints.identity:
                return outcome
        started = time.perf_counter()
        seed_everything(plan.seed)
        if self.settings.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        # Every process loads the same weights; the head that is missing from them is drawn from the
        # seed.
        model = load_classifier(self.base, str(self.accelerator.device), new_head=True)
        step = choose_step(
            model, self.tokens["train"], plan, self.accelerator, self.settings.max_length
        )

        best, progress = train(
            step,
            self.tokens["train"],
            plan,
            lambda: self.validate(model),
            checkpoints,
            device=self.settings.device,
            main_process=self.accelerator.is_main_process,
            log=lambda values, update: self.accelerator.log(values, step=update),
        )
        rows = len(self.tokens["train"])
        tokens_seen = (
            int(self.tokens["train"].lengths.sum()) / rows * plan.batch_size * progress.update
        )
        outcome = {
            "identity": checkpoints.identity,
            "updates": progress.update,
            "validations": progress.validations,
            "best_epoch": progress.best["epoch"],
            "resumed_from": progress.resumed_from,
            "training_s": progress.training_s,
            "wall_s": time.perf_counter() - started,
            "ms_per_update": 1000 * progress.training_s / progress.update,
            "texts_per_s": plan.batch_size * progress.update / progress.training_s,
            "tokens_per_s": tokens_seen / progress.training_s,
            "peak_memory_bytes": torch.cuda.max_memory_allocated()
            if self.settings.device == "cuda"
            else None,
            **step.facts(),
        }
        if self.accelerator.is_main_process:
            model.load_state_dict(best)
            save_model(model, self.tokenizer, folder)
            if folder == self.folder:
                frame = curve(step.losses, plan, rows, progress.validations)
                records.write_csv(self.settings.results_dir / "training_curve.csv", frame)
                plots.training_curve(frame, self.settings.results_dir / "training_curve.png")
            records.write_json(noted, outcome)
        self.accelerator.wait_for_everyone()
        return outcome

    def validate(self, model: torch.nn.Module) -> dict:
        """Accuracy and mean cross-entropy (nats) of `model` on the validation split, dropout off."""
        tokens, training = self.tokens["validation"], model.training
        logits = self.predict(
            model.eval(), tokens, EVALUATION_BATCH, self.tokenizer.pad_token_id, "validation"
        )
        model.train(training)
        loss = -log_softmax(logits.astype(np.float64), axis=1)[
            np.arange(len(tokens)), tokens.labels
        ].mean()
        return {
            "accuracy": float((logits.argmax(axis=1) == tokens.labels).mean()),
            "loss": float(loss),
        }

    def test_scores(self, folder: Path) -> dict[str, float]:
        """Accuracy and macro F1 of the model in `folder` on the test split."""
        model = load_classifier(folder, str(self.accelerator.device))
        logits = self.predict(
            model,
            self.tokens["test"],
            EVALUATION_BATCH,
            self.tokenizer.pad_token_id,
            f"test, {folder.name}",
        )
        found = scores.classification_scores(self.tokens["test"].labels, logits)
        return {name: found[name]["value"] for name in ("accuracy", "f1_macro")}

    def join_evaluation(self, model: torch.nn.Module) -> None:
        """What the other processes do while the main one evaluates the model: predict their share,
        in the same order.
        """
        for name in ("validation", "test"):
            self.predict(
                model,
                self.tokens[name],
                self.settings.batch_size,
                self.tokenizer.pad_token_id,
                name,
            )

    def describe(self, outcomes: list[dict]) -> dict:
        """The record's section on the training: the plan, the first seed's outcome, and the spread
        where there are several.
        """
        section = asdict(self.plan) | {"max_length": self.settings.max_length} | outcomes[0]
        section["truncated_texts"] = self.tokens["train"].truncated
        return section | ({"spread": spread(outcomes)} if len(outcomes) > 1 else {})

    def outputs(self) -> list[Path]:
        """The files in the results folder that a complete run leaves and no later script changes."""
        names = ["training_curve.csv", "training_curve.png", "baseline_confusion_matrix.png"]
        names += ["predictions/baseline.parquet", "predictions/baseline.validation.parquet"]
        return [self.settings.results_dir / name for name in names]

    def clean_up(self) -> None:
        """Remove the checkpoints: the model is saved and evaluated. Every process ends with this."""
        self.accelerator.end_training()
        if self.accelerator.is_main_process:
            shutil.rmtree(self.settings.models_dir / f"{FOLDER}.training", ignore_errors=True)


def make_accelerator(settings: Settings, precision: str, report_to: str) -> tuple[Accelerator, str]:
    """Accelerate's handle on devices and processes, and the precision that `auto` comes to: "bf16"
    or "fp32".

    Raises UserError for bf16 on a device without it.
    """
    on_gpu = settings.device == "cuda"
    if precision == "auto":
        precision = (
            "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        )
    if (
        precision == "bf16"
        and on_gpu
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise UserError("--precision bf16, but this GPU computes none: use --precision fp32")
    accelerator = Accelerator(
        cpu=not on_gpu,
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=None if report_to == "none" else report_to,
        project_dir=settings.results_dir / "logs",
    )
    if report_to != "none":
        accelerator.init_trackers(
            "fine-tuning", config={name: str(value) for name, value in settings.as_dict().items()}
        )
    return accelerator, precision


def in_large_batches(predict):
    """`predict` with at least EVALUATION_BATCH texts at once: a GPU is idle with less, and FP32
    logits differ by 1e-6.
    """

    def larger(model, tokens, batch_size, pad_id, description):
        return predict(model, tokens, max(batch_size, EVALUATION_BATCH), pad_id, description)

    return larger


def choose_step(
    model, tokens: Tokens, plan: Plan, accelerator: Accelerator, max_length: int
) -> TrainingStep:
    """The fastest step that serves this machine and model: fused on one CUDA GPU with Triton, plain
    elsewhere.
    """
    one_gpu = accelerator.device.type == "cuda" and accelerator.num_processes == 1
    if one_gpu and importlib.util.find_spec("triton"):
        from .fused import step as fused_step

        if fused_step.serves(model, plan, max_length):
            try:
                return fused_step.FusedStep(model, tokens, plan)
            except torch.OutOfMemoryError:
                # Nothing is trained yet, and the model is whole. The plain step can take a batch in
                # parts.
                print("too little GPU memory for the fused step: training with the plain one")
    return PlainStep(model, tokens, plan, accelerator)


def save_model(model: torch.nn.Module, tokenizer, folder: Path) -> None:
    """Write a plain transformers folder: FP32 weights as safetensors, config with label names,
    tokenizer; atomically.
    """
    with records.atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def spread(outcomes: list[dict]) -> dict:
    """Mean and sample standard deviation of the test scores over seeds: what chance alone does to
    them.
    """
    result = {"n": len(outcomes), "seeds": [outcome["identity"]["--seed"] for outcome in outcomes]}
    for name in ("accuracy", "f1_macro"):
        values = [outcome["test"][name] for outcome in outcomes]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        result[name] = {"mean": float(np.mean(values)), "sd": sd, "values": values}
    return result


def summary(record: dict) -> str:
    """What script 1 prints last: a few lines for a person."""
    training, metrics = record["training"], record["metrics"]
    lines = [
        f"accuracy {metrics['accuracy']['value']:.4f} ({metrics['accuracy']['low']:.4f} to {metrics['accuracy']['high']:.4f}), "
        f"macro F1 {metrics['f1_macro']['value']:.4f}, on {record['data']['n']} test rows",
        f"{training['updates']} updates in {training['training_s']:.1f} s ({training['ms_per_update']:.2f} ms an update, "
        f"{training['tokens_per_s']:,.0f} tokens a second); epoch {training['best_epoch']} kept",
    ]
    if "spread" in training:
        found = training["spread"]
        for name in ("accuracy", "f1_macro"):
            lines.append(
                f"{name} over seeds: {found[name]['mean']:.4f} ± {found[name]['sd']:.4f} (sd), n = {found['n']}"
            )
    return "\n".join(lines)
