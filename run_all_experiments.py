"""Run the whole experiment: the five scripts in order, each its own process, then a summary.

    python run_all_experiments.py --preset demo    two CPU cores, no hub, three minutes
    python run_all_experiments.py                  the published experiment: a CUDA GPU and the hub
    python run_all_experiments.py --only 1 3       these scripts
    python run_all_experiments.py --from 2         this script and those after it

What a script prints is shown and added to results/logs/. A script whose outputs are there, made
with the same flags from the same inputs, says so and ends; --overwrite redoes it. Flags go to every
script that has them, but --dataset not to script 5, which would show texts for it: logs hold none.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from gpt2_quant import cli as common
from gpt2_quant.data.tables import data_files
from gpt2_quant.errors import UserError, run
from gpt2_quant.models.variants import VARIANTS

SCRIPTS = {int(path.name[0]): path for path in sorted((common.ROOT / "src").glob("[1-5]_*.py"))}
SHARED = (
    "preset", "base_model", "models_dir", "results_dir", "device", "batch_size", "max_length",
    "seed", "max_train_samples", "max_test_samples", "task", "dataset_config", "text_columns",
    "label_column", "train_split", "validation_split", "test_split",
)  # fmt: skip
OWN_FLAGS = {
    "epochs": (1,),
    "learning_rate": (1,),
    "precision": (1,),
    "checkpoint": (2, 3),
    "export": (1, 2),
    "human_judgements": (4,),
    "dataset": (1, 2, 3, 4),
}
# Seconds of each script on these machines; after the first the run itself sets the scale.
SECONDS = {"demo": (58, 29, 31, 18, 10), "paper": (80, 125, 350, 130, 20)}
MACHINES = {"demo": "two CPU cores", "paper": "one H200, with 47,000 train rows"}
GRACE_SECONDS = 30
FLOP_PER_SECOND = 50e9  # of one core in float32 matrix products; measured between 30e9 and 80e9
OTHER_HOURS = 0.6  # timing, text metrics and reports on two cores
TOKENS_PER_TEXT = 52  # mean of AG News under GPT-2's tokenizer
BYTES_PER_ROW = 245  # mean of AG News' CSV
DEMO = "python run_all_experiments.py --preset demo"


def main() -> None:
    parser = flags()
    args = parser.parse_args()
    settings = common.settings_from(args)
    numbers = sorted(set(args.only)) if args.only else range(args.start, len(SCRIPTS) + 1)
    if settings.preset == "paper" and settings.device == "cpu" and numbers[0] == 1:
        warn_of_cost(args, settings)
    taken: dict[int, float] = {}
    usual = {number: SECONDS[settings.preset][number - 1] for number in numbers}
    if settings.preset == "demo" or settings.device == "cuda":  # else `warn_of_cost` says it
        print(f"{duration(sum(usual.values()) / 3600)} in all on {MACHINES[settings.preset]}")
    for number in numbers:
        script = SCRIPTS[number]
        arguments = arguments_of(parser, args, number)
        if number == 2 and 3 in numbers:
            arguments.append("--skip-timing")  # script 3 times all variants, 2's among them
        print(f"[{number}/5] python src/{script.name} {' '.join(arguments)}", flush=True)
        log = settings.results_dir / "logs" / f"{script.stem}.log"
        begun = time.perf_counter()
        code = run_streamed([sys.executable, str(script), *arguments], log)
        if code:
            stop(number, code, log)
        taken[number] = time.perf_counter() - begun
        print(f"[{number}/5] {script.stem}: done in {taken[number]:.0f} s")
        print(whole_run(usual, taken), flush=True)
    print()
    for number, seconds in taken.items():
        print(f"{SCRIPTS[number].stem:<26}{seconds:>6.0f} s")
    print(f"{'all':<26}{sum(taken.values()):>6.0f} s")
    print(f"results: {settings.results_dir}")


def whole_run(usual: dict[int, float], taken: dict[int, float]) -> str:
    """The overall progress as a bar, from the seconds that scripts usually take and have taken."""
    # How slow this machine is. What was complete says nothing about it: it ended at once.
    ran = [number for number in taken if taken[number] > usual[number] / 10]
    scale = sum(taken[n] for n in ran) / sum(usual[n] for n in ran) if ran else 1
    left_s = scale * sum(usual[number] for number in usual if number not in taken)
    elapsed_s = sum(taken.values())
    form = "whole run {percentage:3.0f}% |{bar:40}| {elapsed} passed, {remaining} left"
    return tqdm.format_meter(elapsed_s, elapsed_s + left_s, elapsed_s, bar_format=form)


def flags():
    """The shared flags, which scripts to run, and what is handed on to some."""
    parser = common.parser(__doc__)
    which = parser.add_argument_group("which scripts").add_mutually_exclusive_group()
    number = {"type": int, "choices": SCRIPTS}
    which.add_argument("--only", **number, nargs="+", help="run these scripts (default: all)")
    which.add_argument(
        "--from", **number, default=1, dest="start", help="begin with this one (default: 1)"
    )
    add = parser.add_argument_group("handed on to the scripts that have them").add_argument
    precisions = ("auto", "bf16", "fp32")
    add("--epochs", type=common.epochs, metavar="N", help="script 1: passes over the train rows")
    add("--learning-rate", type=float, metavar="RATE", help="script 1: AdamW's peak rate")
    add("--precision", choices=precisions, help="script 1: arithmetic of training")
    add("--checkpoint", metavar="ID|FOLDER", help="scripts 2 and 3: classifier to quantize")
    what = "scripts 1 and 2: models as ONNX files, too, each a row"
    add("--export", type=common.onnx_format, choices=("onnx",), help=what)
    add("--human-judgements", metavar="hub|FOLDER", help="script 4: people's ratings")
    return parser


def arguments_of(parser, args, number: int) -> list[str]:
    """The command line of script `number`: its flags, as far as they differ from the default."""
    own = [name for name, scripts in OWN_FLAGS.items() if number in scripts]
    arguments = []
    for name in [*SHARED, *own]:
        value = getattr(args, name)
        if value != parser.get_default(name):
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return arguments + ["--overwrite"] * args.overwrite


def warn_of_cost(args, settings) -> None:
    """Say what the paper preset costs without CUDA; go on only where `--device cpu` asks for it."""
    shape = {"n_layer": 12, "n_embd": 768}  # GPT-2's, where no folder says otherwise
    with suppress(OSError, ValueError):
        shape |= json.loads((Path(settings.base_model) / "config.json").read_text(encoding="utf-8"))
    weights = 12 * shape["n_layer"] * shape["n_embd"] ** 2  # of a block: 4 d² attention, 8 d² MLP
    n_bytes = sum(path.stat().st_size for path in data_files(args) if path.is_file())
    rows = settings.max_train_samples or n_bytes // BYTES_PER_ROW or 114_000
    n_test = settings.max_test_samples or min(rows // 10, 7_600)
    tokens = rows * TOKENS_PER_TEXT * (args.epochs or common.PRESETS["paper"].epochs)
    # 6 operations per weight and token: 2 forward, 4 backward (Kaplan et al., 2020, arXiv
    # 2001.08361, section 2.1).
    cores = os.cpu_count() or 1
    operations_per_hour = FLOP_PER_SECOND * cores * 3600
    hours = 6 * weights * tokens / operations_per_hour
    # Every variant scores the test rows and the validation rows, a twentieth of the train rows.
    variants = sum(not variant.in_onnx for variant in VARIANTS.values())
    scored = variants * (n_test + rows // 20) * TOKENS_PER_TEXT
    in_all = hours + 2 * weights * scored / operations_per_hour + OTHER_HOURS
    cost = (
        f"no CUDA device is used: on {cores} CPU cores training on about {rows:,} rows takes "
        f"{duration(hours)}, all five scripts {duration(in_all)}"
    )
    if args.device != "cpu":
        raise UserError(f"{cost}: try {DEMO}, or add --device cpu to train here anyway")
    print(f"note: {cost}; {DEMO} takes three minutes in all", flush=True)


def duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"


def run_streamed(command: list[str], log: Path) -> int:
    """Run a script, show what it prints as it comes, add it to `log`; returns its exit code.

    The script leads a process group of its own, so that Ctrl-C reaches it once, from here, and it
    can end in order.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # A log takes a line for each state of a progress bar.
    unbuffered.setdefault("TQDM_MININTERVAL", "1" if sys.stdout.isatty() else "10")
    with (
        open(log, "ab") as kept,
        subprocess.Popen(
            command,
            env=unbuffered,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as child,
    ):
        try:
            while block := os.read(child.stdout.fileno(), 1 << 16):
                for stream in (kept, sys.stdout.buffer):
                    stream.write(block)
                    stream.flush()
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
        # A second Ctrl-C: no more patience.
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            child.wait(seconds)
            return


def stop(number: int, code: int, log: Path) -> NoReturn:
    """End the run after a failed script with an exit code that says whose fault it was."""
    if code == 130:
        raise KeyboardInterrupt
    print(
        f"error: step {number} ({log.stem}) ended with exit code {code}, its log is {log}; "
        "once that is mended, the same command goes on from there",
        file=sys.stderr,
    )
    sys.exit(2 if code == 2 else 1)


if __name__ == "__main__":
    run(main)
