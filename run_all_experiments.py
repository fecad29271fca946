"""Run the whole experiment: the five scripts in order, each its own process, and a summary at the
end.

    python run_all_experiments.py --preset demo        two CPU cores, no hub, under five minutes
    python run_all_experiments.py                      the published experiment: a CUDA GPU and the hub
    python run_all_experiments.py --only 1 3           these scripts
    python run_all_experiments.py --from 2             this script and those after it

What a script prints is shown and kept in results/logs/. A step whose outputs are there, made with
the same flags from the same inputs, is skipped; --overwrite redoes it. Flags go to every script
that has them, but --dataset not to script 5, which would show texts for it: logs hold none.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(
    0, str(ROOT / "src")
)  # unlike the scripts in src/, this file does not stand beside the library

from gpt2_quant import cli as common  # noqa: E402
from gpt2_quant.cache import Step  # noqa: E402
from gpt2_quant.errors import UserError, run  # noqa: E402
from gpt2_quant.models.variants import BASELINE, made_by  # noqa: E402

SHARED = (
    "preset",
    "base_model",
    "models_dir",
    "results_dir",
    "device",
    "batch_size",
    "max_length",
    "seed",
)
SHARED += ("max_train_samples", "max_test_samples")
OWN_FLAGS = {
    "epochs": (1,),
    "learning_rate": (1,),
    "precision": (1,),
    "checkpoint": (2, 3),
    "human_judgements": (4,),
}
OWN_FLAGS["dataset"] = (
    1,
    2,
    3,
    4,
)  # given it, script 5 prints the data's texts, and what a script prints is kept
GRACE_SECONDS = 30
CPU_FLOP_PER_SECOND = 50e9  # of one core in float32 matrix products; measured between 30e9 and 80e9
TOKENS_PER_TEXT = 52  # mean of AG News under GPT-2's tokenizer


@dataclass(frozen=True)
class Stage:
    """One script: its number, its file's stem, the results it must leave, and what of earlier
    stages it reads.
    """

    number: int
    name: str
    makes: tuple[str, ...]
    reads: tuple[str, ...] = ()

    @property
    def script(self) -> Path:
        return ROOT / "src" / f"{self.name}.py"


def _made_by(number: int, *also: str) -> tuple[str, ...]:
    """The records of the variants that script `number` makes, and what else it leaves in the
    results folder.
    """
    return (
        *(f"records/{v.key}.json" for v in made_by(number)),
        *also,
    )


BASELINE_WEIGHTS = f"{BASELINE.folder}/model.safetensors"
STAGES = (
    Stage(1, "1_baseline_finetuning", _made_by(1, "training_curve.csv", "training_curve.png")),
    Stage(2, "2_quantization_scratch", _made_by(2), (BASELINE_WEIGHTS,)),
    Stage(3, "3_bitsandbytes_quant", _made_by(3), (BASELINE_WEIGHTS,)),
    Stage(4, "4_evaluation_metrics", ("records/text_metrics.json",)),
    Stage(5, "5_compare_all_models", ("comparison_table.csv", "report_1.pdf", "report_2.pdf")),
)


def main() -> None:
    args = flags()
    settings = common.settings_from(args)
    stages = [
        stage
        for stage in STAGES
        if (stage.number in args.only if args.only else stage.number >= args.start)
    ]
    if settings.preset == "paper" and settings.device == "cpu" and stages[0].number == 1:
        warn_of_cost(args, settings)
    outcomes, ran, started = [], False, time.perf_counter()
    for stage in stages:
        arguments = arguments_of(args, stage.number)
        step = Step(
            settings.results_dir,
            f"run_all_{stage.name}",
            {"arguments": arguments},
            inputs_of(stage, settings),
        )
        if stage.number == 2 and any(later.number == 3 for later in stages):
            arguments.append(
                "--skip-timing"
            )  # script 3 times all variants in one process, script 2's among them
        made = [settings.results_dir / path for path in stage.makes]
        begun = time.perf_counter()
        stale = settings.overwrite or (
            stage.number == 5 and ran
        )  # the comparison shows timings, which receipts leave out
        if step.complete() and not stale:
            print(
                f"[{stage.number}/5] {stage.name}: already complete for these flags (--overwrite redoes it)",
                flush=True,
            )
            outcomes.append((stage, "already complete", 0.0))
            continue
        print(
            f"[{stage.number}/5] {stage.name}: python src/{stage.name}.py {' '.join(arguments)}",
            flush=True,
        )
        log = settings.results_dir / "logs" / f"{stage.name}.log"
        code = run_streamed(
            [sys.executable, str(stage.script), *arguments, *["--overwrite"] * settings.overwrite],
            log,
        )
        seconds = time.perf_counter() - begun
        if code:
            stop(stage, code, log)
        step.finish(made)
        ran = True
        print(f"[{stage.number}/5] {stage.name}: done in {seconds:.0f} s", flush=True)
        outcomes.append((stage, "done", seconds))
    print(f"\n{'step':<26}{'outcome':<20}{'time':>8}")
    for stage, outcome, seconds in outcomes:
        print(f"{stage.name:<26}{outcome:<20}{seconds:>6.0f} s")
    print(f"{'all':<46}{time.perf_counter() - started:>6.0f} s\nresults: {settings.results_dir}")


def flags():
    parser = common.parser(__doc__)
    which = parser.add_argument_group("which scripts").add_mutually_exclusive_group()
    numbers = [stage.number for stage in STAGES]
    which.add_argument(
        "--only", type=int, nargs="+", choices=numbers, help="run these scripts (default: all)"
    )
    which.add_argument(
        "--from",
        type=int,
        choices=numbers,
        default=1,
        dest="start",
        help="begin with this one (default: 1)",
    )
    own = parser.add_argument_group("handed on to the scripts that have them")
    own.add_argument(
        "--epochs",
        type=common.positive_int,
        metavar="N",
        help="script 1: passes over the train rows",
    )
    own.add_argument(
        "--learning-rate", type=float, metavar="RATE", help="script 1: AdamW's peak rate"
    )
    own.add_argument(
        "--precision", choices=("auto", "bf16", "fp32"), help="script 1: arithmetic of training"
    )
    own.add_argument(
        "--checkpoint", metavar="ID|FOLDER", help="scripts 2 and 3: classifier to quantize"
    )
    own.add_argument("--human-judgements", metavar="hub|FOLDER", help="script 4: people's ratings")
    return parser.parse_args()


def arguments_of(args, number: int) -> list[str]:
    """The command-line arguments of script `number`: shared flags that differ from their default,
    and its own.
    """
    names = [*SHARED, *(name for name, scripts in OWN_FLAGS.items() if number in scripts)]
    defaults = {"preset": "paper", "device": "auto", "batch_size": 16, "max_length": 128, "seed": 0}
    given = {name: getattr(args, name) for name in names}
    differ = {
        name: value
        for name, value in given.items()
        if value is not None and value != defaults.get(name)
    }
    return [
        word
        for name, value in differ.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def inputs_of(stage: Stage, settings) -> list[Path]:
    """The files whose change makes a stage's results stale; the comparison reads every record."""
    if stage.number == 5:
        return sorted((settings.results_dir / "records").glob("*.json"))
    return [settings.models_dir / path for path in stage.reads]


def warn_of_cost(args, settings) -> None:
    """Say what the paper preset costs without CUDA; go on only where `--device cpu` asks for it."""
    shape = {"n_layer": 12, "n_embd": 768}  # GPT-2's, where no folder says otherwise
    with suppress(OSError, ValueError):
        shape |= json.loads((Path(settings.base_model) / "config.json").read_text(encoding="utf-8"))
    weights = 12 * shape["n_layer"] * shape["n_embd"] ** 2  # of a block: 4 d² attention, 8 d² MLP
    rows, epochs = (
        settings.max_train_samples or 114_000,
        args.epochs or common.PRESETS["paper"].epochs,
    )
    # 6 operations a weight and token: 2 forward, 4 backward (Kaplan et al., 2020, arXiv 2001.08361,
    # section 2.1).
    hours = (
        6
        * weights
        * rows
        * epochs
        * TOKENS_PER_TEXT
        / (CPU_FLOP_PER_SECOND * (os.cpu_count() or 1))
        / 3600
    )
    cost = (
        f"training would take about {hours:.1f} hours"
        if hours >= 1
        else f"training takes about {hours * 60:.0f} minutes"
    )
    cost = f"no CUDA device is used: on {os.cpu_count()} CPU cores {cost}"
    if args.device == "cpu":
        print(
            f"note: {cost}; python run_all_experiments.py --preset demo takes under five minutes in all",
            flush=True,
        )
        return
    raise UserError(
        f"{cost}: try python run_all_experiments.py --preset demo, or add --device cpu to train here anyway"
    )


def run_streamed(command: list[str], log: Path) -> int:
    """Run a script, show what it prints as it comes, keep it in `log`; returns its exit code.

    The script leads a process group of its own, so that Ctrl-C reaches it once, from here, and it
    can end in order.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        with open(log, "wb") as kept:
            while block := os.read(child.stdout.fileno(), 1 << 16):
                sys.stdout.buffer.write(block)
                sys.stdout.buffer.flush()
                kept.write(block)
                kept.flush()
        return child.wait()
    except BaseException:
        end(child)
        raise


def end(child: subprocess.Popen) -> None:
    """Interrupt a script and what it started; kill them where that does not help in time."""
    # SIGTERM, which every script takes as Ctrl-C: SIGINT is ignored by what a shell started in the
    # background.
    for what, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        if child.poll() is None:
            os.killpg(child.pid, what)
        try:
            child.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:  # a second Ctrl-C: no more patience
            continue


def stop(stage: Stage, code: int, log: Path) -> None:
    """End the run after a failed step with an exit code that says whose fault it was."""
    if code == 130:
        raise KeyboardInterrupt
    print(
        f"error: step {stage.number} ({stage.name}) ended with exit code {code}, its log is {log}; "
        "once that is mended, the same command goes on from there",
        file=sys.stderr,
    )
    sys.exit(2 if code == 2 else 1)


if __name__ == "__main__":
    run(main)
