"""Task 2.1: fine-tune all of GPT-2 on AG News; every other classifier here is made from this one.

Trains for 3 epochs (AdamW, batch 16, 128 tokens), validates after each, keeps the best, and writes
a plain transformers folder, the training curve, predictions, confusion matrix and record:

  python src/1_baseline_finetuning.py                          # GPT-2 124M from the hub, on a CUDA GPU
  python src/1_baseline_finetuning.py --preset demo            # a miniature, on a CPU
  accelerate launch src/1_baseline_finetuning.py               # on all GPUs of this machine, or of several
  python src/1_baseline_finetuning.py --seeds 0 1 2            # mean and deviation over three trainings

Stopped at any moment, the same command goes on from its last checkpoint.
"""

import os
from dataclasses import replace

if os.environ.get("RANK", "0") != "0":
    os.environ["TQDM_DISABLE"] = "1"  # under accelerate launch: one progress bar, not one a process

from gpt2_quant import cli as common
from gpt2_quant.cache import Step
from gpt2_quant.errors import UserError, run
from gpt2_quant.models.variants import BASELINE

PRECISIONS = ("auto", "bf16", "fp32")


def flags():
    parser = common.parser(__doc__)
    add = parser.add_argument_group("training flags").add_argument
    add(
        "--epochs",
        type=common.positive_int,
        metavar="N",
        help="passes over the train rows (default: 3)",
    )
    add(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="AdamW's peak rate (default: 2e-5; demo: 5e-4)",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="auto takes bf16 on GPUs that have it (default: auto)",
    )
    add(
        "--max-steps",
        type=common.positive_int,
        metavar="N",
        help="end after N updates (default: after all epochs)",
    )
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="train once a seed; the first one's model is kept (default: --seed)",
    )
    add(
        "--checkpoint-minutes",
        type=float,
        default=3.0,
        metavar="MIN",
        help="time between checkpoints (default: 3)",
    )
    add(
        "--report-to",
        choices=("none", "tensorboard"),
        default="none",
        help="log the curve there too (default: none)",
    )
    add("--push-to-hub", metavar="OWNER/NAME", help="publish the model, with its card, on the hub")
    return parser.parse_args()


def main() -> None:
    args = flags()
    settings = common.settings_from(args)
    preset = common.PRESETS[args.preset]
    if args.learning_rate is not None and not 0 < args.learning_rate < 1:
        raise UserError(
            f"--learning-rate {args.learning_rate} is not between 0 and 1: give one like 2e-5"
        )
    seeds = list(dict.fromkeys(args.seeds or [settings.seed]))
    settings = replace(settings, seed=seeds[0])
    step = Step(
        settings.results_dir,
        "1_baseline_finetuning",
        {k: v for k, v in vars(args).items() if k != "push_to_hub"},
    )
    record_path = settings.results_dir / "records" / "baseline.json"
    complete = step.complete() and record_path.is_file() and not settings.overwrite
    main_process = (
        os.environ.get("RANK", "0") == "0"
    )  # under accelerate launch one process speaks and publishes
    publish = args.push_to_hub and main_process
    if publish:
        from gpt2_quant.data import hub

        hub.check_login(args.push_to_hub)
    if not complete:
        fine_tune(args, settings, preset, seeds, step)
    elif main_process:
        print(
            f"{settings.models_dir / 'baseline_gpt2'} is already complete for these flags; --overwrite trains it anew"
        )
    if publish:
        print("published:", hub.push(settings.models_dir / "baseline_gpt2", args.push_to_hub))


def fine_tune(args, settings, preset, seeds, step) -> None:
    from gpt2_quant.data.datasets import check_folder
    from gpt2_quant.data.hub import fetch_model_folder

    check_folder(settings)
    if common.looks_like_path(settings.base_model) and args.preset != "demo":
        fetch_model_folder(settings.base_model)

    from gpt2_quant.measure.evaluation import evaluate_variant
    from gpt2_quant.models import cards
    from gpt2_quant.models.loading import load_classifier
    from gpt2_quant.training import run as training_run
    from gpt2_quant.training.checkpoints import exclusive
    from gpt2_quant.training.loop import Plan

    accelerator, precision = training_run.make_accelerator(settings, args.precision, args.report_to)
    with exclusive(settings.models_dir, hold=accelerator.is_main_process):
        plan = Plan(
            epochs=args.epochs or preset.epochs,
            learning_rate=args.learning_rate or preset.learning_rate,
            batch_size=settings.batch_size,
            seed=seeds[0],
            precision=precision,
            max_steps=args.max_steps,
        )
        run = training_run.Run(settings, plan, accelerator, args.checkpoint_minutes)
        outcomes = run.train_all(seeds)
        model = load_classifier(run.folder, str(accelerator.device))
        if not accelerator.is_main_process:
            run.join_evaluation(model)
            run.clean_up()
            return
        record = evaluate_variant(
            settings, BASELINE.key, model, run.tokenizer, run.splits, folder=run.folder, baseline=run.folder,
            extra={"training": run.describe(outcomes)}, predict=run.predict,
        )  # fmt: skip
        card = cards.write_card(run.folder, record)
        step.finish(
            [run.folder / "config.json", run.folder / "model.safetensors", card, *run.outputs()]
        )
        run.clean_up()
    print(training_run.summary(record))


if __name__ == "__main__":
    run(main)
