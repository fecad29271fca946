"""One run of script 1: what its seeds share, and what is noted of each.

Seeds after the first show the spread of scores by chance; only their scores are kept. A finished
seed is noted as `outcome.json` beside its checkpoints; a run stopped later does not train it again.
P processes train P seeds at once, each one of them alone, since nothing has to be exchanged then;
seeds that are left over are trained one after the other, by all processes together.
"""

import argparse
import hashlib
import importlib.util
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import transformers
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from .. import records
from ..cli import PRESETS, Settings
from ..data.datasets import Split
from ..data.tokens import Tokens
from ..errors import UserError
from ..models.checkpoints import weights_sha256
from ..models.variants import BASELINE, TFIDF
from .checkpoints import Checkpoints
from .evaluation import Scorer
from .figures import training_curve
from .loop import Plan, Training, TrainingStep, curve
from .plain_step import PlainStep

OUTCOME = "outcome.json"


def prepare(args: argparse.Namespace, settings: Settings) -> tuple[Accelerator, Plan]:
    """Raises UserError for bf16 on a GPU without it."""
    preset, precision, on_gpu = PRESETS[settings.preset], args.precision, settings.device == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        precision = "bf16" if has_bf16 else "fp32"
    if precision == "bf16" and on_gpu and not has_bf16:
        raise UserError("--precision bf16, but this GPU computes none: use --precision fp32")
    accelerator = Accelerator(
        cpu=not on_gpu,
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=settings.results_dir / "logs",
        # Where one process resumes a seed, the others, done with theirs, wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))],
    )
    config = {name: str(value) for name, value in settings.as_dict().items()}
    accelerator.init_trackers("fine-tuning", config)  # none without log_with
    epochs, rate = args.epochs or preset.epochs, args.learning_rate or preset.learning_rate
    rest = settings.batch_size, settings.seed, precision, args.max_steps
    return accelerator, Plan(epochs, rate, *rest)


class Alone(Accelerator):
    """This process of several as the only one, on `accelerator`'s device, with its trackers."""

    num_processes, process_index, is_main_process = 1, 0, True
    distributed_type, multi_device = DistributedType.NO, False

    def __init__(self, accelerator: Accelerator):
        on_cpu = accelerator.device.type == "cpu"
        super().__init__(cpu=on_cpu, mixed_precision=accelerator.mixed_precision)
        self.trackers = accelerator.trackers

    def reduce(self, tensor, reduction="sum", scale=1.0):
        return tensor

    def wait_for_everyone(self) -> None:
        pass


def shares(seeds: list[int], scorer: Scorer) -> Iterator[tuple[list[int], Scorer]]:
    """For each round of seeds those that this process trains, and the scorer to train them with."""
    accelerator = scorer.accelerator
    processes, process = accelerator.num_processes, accelerator.process_index
    for first in range(0, len(seeds), processes):
        together = seeds[first : first + processes]
        if len(together) == processes > 1:
            yield [together[process]], replace(scorer, accelerator=Alone(accelerator))
        else:
            yield together, scorer


def gathered(outcomes: list[dict], scorer: Scorer) -> list[dict]:
    """All processes' outcomes of one round, in the order of its seeds."""
    return gather_object(outcomes) if isinstance(scorer.accelerator, Alone) else outcomes


def training_folder(settings: Settings) -> Path:
    """Checkpoints and outcomes, one folder per seed, until the run is complete."""
    return settings.models_dir / f"{BASELINE.folder}.training"


def checkpoints(
    args: argparse.Namespace, settings: Settings, plan: Plan, base: Path, splits: dict[str, Split],
    accelerator: Accelerator,
) -> Checkpoints:  # fmt: skip
    """Those of `plan.seed`; identity in names that a user knows."""
    package = Path(__file__).parents[1]
    sources = [
        package / f"data/{name}.py"
        for name in ("ag_news", "classes", "datasets", "tables", "tokens")
    ]
    sources += sorted((package / "training").rglob("*.py"))
    code = b"".join(path.read_bytes() for path in sources)
    identity = {f"--{name.replace('_', '-')}": value for name, value in asdict(plan).items()}
    identity |= {
        "--base-model weights": weights_sha256(base)[:16],
        "--max-length": settings.max_length,
        "device": settings.device,
        "number of processes": accelerator.num_processes,
        "train data": splits["train"].sha256[:16],
        "validation data": splits["validation"].sha256[:16],
        "code version": hashlib.sha256(code).hexdigest()[:16],
        "torch version": torch.__version__,
        "transformers version": transformers.__version__,
    }
    texts = {name: str(value) for name, value in identity.items()}
    folder = training_folder(settings) / f"seed-{plan.seed}"
    return Checkpoints(folder, texts, args.checkpoint_minutes)


def choose_step(
    model: PreTrainedModel, tokens: Tokens, plan: Plan, accelerator: Accelerator
) -> TrainingStep:
    """Fused on CUDA GPUs where it serves, else plain: the same on all processes."""
    if accelerator.device.type == "cuda" and importlib.util.find_spec("triton"):
        from .fused.step import FusedStep, serves

        if serves(model, plan):
            share = {"process": accelerator.process_index, "processes": accelerator.num_processes}
            try:
                step = FusedStep(model, tokens, plan, **share)
            except torch.OutOfMemoryError:
                step = None
            fits = torch.tensor(float(step is not None), device=accelerator.device)
            if accelerator.reduce(fits, "sum") == accelerator.num_processes and step:
                return step
            fault = "too little GPU memory for the fused step"
            accelerator.print(f"{fault}: training with the plain one")
    return PlainStep(model, tokens, plan, accelerator)


def finished(checkpoints: Checkpoints, folder: Path | None, scored: bool) -> dict | None:
    """The noted outcome of this identity; None if the model of a seed that is kept is not in its
    `folder`, or test scores are asked for and missing.
    """
    with suppress(OSError, ValueError, LookupError, TypeError):  # missing or damaged: trained again
        outcome = json.loads((checkpoints.folder / OUTCOME).read_text(encoding="utf-8"))
        whole = "test" in outcome or not scored
        if folder:
            whole = whole and (folder / "config.json").is_file()
        if whole and outcome["identity"] == checkpoints.identity:
            return outcome
    return None


def note(outcome: dict, checkpoints: Checkpoints) -> None:
    records.write_json(checkpoints.folder / OUTCOME, outcome)


def fine_tune(
    model: PreTrainedModel, plan: Plan, checkpoints: Checkpoints, scorer: Scorer
) -> tuple[dict, pd.DataFrame]:
    """The record's facts and the training curve; `model` ends with the best epoch's weights. Raises
    as Training.run does.
    """
    accelerator, tokens = scorer.accelerator, scorer.tokens["train"]
    started, on_gpu = time.perf_counter(), accelerator.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    step = choose_step(model, tokens, plan, accelerator)
    validate = partial(scorer.validation, model)
    best, progress = Training(step, tokens, plan, validate, checkpoints, accelerator).run()
    model.load_state_dict(best)
    model.eval()
    updates, seconds = progress.update, progress.training_s
    texts_per_s = plan.batch_size * updates / seconds
    outcome = {
        "identity": checkpoints.identity,
        "updates": updates,
        "validations": progress.validations,
        "best_epoch": progress.best["epoch"],
        "resumed_from": progress.resumed_from,
        "training_s": seconds,
        "wall_s": time.perf_counter() - started,
        "ms_per_update": 1000 * seconds / updates,
        "texts_per_s": texts_per_s,
        "tokens_per_s": float(tokens.lengths.mean()) * texts_per_s,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        **step.facts(),
    }
    return outcome, curve(step.losses, plan, len(tokens), progress.validations)


def save_curve(frame: pd.DataFrame, results: Path) -> None:
    records.write_csv(results / "training_curve.csv", frame)
    training_curve(frame, results / "training_curve.png")


def outputs(folder: Path, settings: Settings) -> list[Path]:
    """Files of a complete run that no later script changes, but for a record's timings."""
    names = ["training_curve.csv", "training_curve.png", f"{BASELINE.key}_confusion_matrix.png"]
    names += [
        f"predictions/{variant.key}{split}.parquet"
        for variant in (BASELINE, TFIDF)
        for split in ("", ".validation")
    ]
    names += [f"records/{variant.key}.json" for variant in (BASELINE, TFIDF)]
    weights = [folder / "config.json", folder / "model.safetensors"]
    weights.append(settings.models_dir / TFIDF.folder / "model.safetensors")
    return [*weights, *(settings.results_dir / name for name in names)]


def clean_up(accelerator: Accelerator, settings: Settings) -> None:
    """Every process ends with this."""
    accelerator.end_training()
    if accelerator.is_main_process:
        shutil.rmtree(training_folder(settings), ignore_errors=True)


def describe(settings: Settings, plan: Plan, outcomes: list[dict], scorer: Scorer) -> dict:
    section = asdict(plan) | {"max_length": settings.max_length} | outcomes[0]
    section |= scorer.tokens["train"].cut()
    if len(outcomes) > 1:
        section["spread"] = spread(outcomes)
    return {"training": section}


def spread(outcomes: list[dict]) -> dict:
    """Mean and sample standard deviation of test scores over seeds."""
    result = {"n": len(outcomes), "seeds": [outcome["identity"]["--seed"] for outcome in outcomes]}
    for name, values in pd.DataFrame([outcome["test"] for outcome in outcomes]).items():
        result[str(name)] = {"mean": values.mean(), "sd": values.std(), "values": values.tolist()}
    return result


def summary(record: dict) -> str:
    training, metrics = record["training"], record["metrics"]
    accuracy, f1 = metrics["accuracy"], metrics["f1_macro"]
    lines = [
        f"accuracy {accuracy['value']:.4f} ({accuracy['low']:.4f} to {accuracy['high']:.4f}), "
        f"macro F1 {f1['value']:.4f}, on {record['data']['n']} test rows",
        f"{training['updates']} updates in {training['training_s']:.1f} s "
        f"({training['ms_per_update']:.2f} ms per update, {training['tokens_per_s']:,.0f} tokens "
        f"per second); epoch {training['best_epoch']} kept",
    ]
    found = training.get("spread", {})
    for name in ("accuracy", "f1_macro") if found else ():
        mean, sd = found[name]["mean"], found[name]["sd"]
        lines.append(f"{name} over seeds: {mean:.4f} ± {sd:.4f} (sd), n = {found['n']}")
    return "\n".join(lines)
