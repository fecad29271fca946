"""Task 2.1: fine-tune all of GPT-2 on AG News; every other classifier here is made from this one.

Trains for 3 epochs (AdamW, batch 16, 128 tokens), validates after each, keeps the best, and writes
a plain transformers folder, the training curve, predictions, confusion matrix and record:

  python src/1_baseline_finetuning.py                   # GPT-2 124M from the hub, on a CUDA GPU
  python src/1_baseline_finetuning.py --preset demo     # a miniature, on a CPU
  accelerate launch src/1_baseline_finetuning.py        # on all GPUs of this machine, or of several
  python src/1_baseline_finetuning.py --seeds 0 1 2     # mean and deviation over three trainings

Stopped at any moment, the same command goes on from its last checkpoint.
"""

import os
from dataclasses import replace

if os.environ.get("RANK", "0") != "0":
    os.environ["TQDM_DISABLE"] = "1"  # under accelerate launch one process speaks and publishes

from gpt2_quant.cli import looks_like_path, parser, positive_int, seed_everything, settings_from
from gpt2_quant.errors import UserError, run
from gpt2_quant.models.variants import BASELINE

MAIN_PROCESS = os.environ.get("RANK", "0") == "0"


def flags():
    result = parser(__doc__)
    add = result.add_argument_group("training flags").add_argument
    # fmt: off
    add("--epochs", type=positive_int, metavar="N", help="passes over the train rows (default: 3)")
    add("--learning-rate", type=float, metavar="RATE",
        help="AdamW's peak rate (default: 2e-5; demo: 5e-4)")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto",
        help="auto takes bf16 on GPUs that have it (default: auto)")
    add("--max-steps", type=positive_int, metavar="N",
        help="end after N updates (default: after all epochs)")
    add("--seeds", type=int, nargs="+", metavar="N",
        help="train once per seed; the first one's model is kept (default: --seed)")
    add("--checkpoint-minutes", type=float, default=3.0, metavar="MIN",
        help="time between checkpoints (default: 3)")
    add("--report-to", choices=("none", "tensorboard"), default="none",
        help="log the curve there too (default: none)")
    add("--push-to-hub", metavar="OWNER/NAME", help="publish the model, with its card, on the hub")
    # fmt: on
    args = result.parse_args()
    if args.learning_rate is not None and not 0 < args.learning_rate < 1:
        raise UserError(
            f"--learning-rate {args.learning_rate} is not between 0 and 1: give one like 2e-5"
        )
    return args


def main() -> None:
    args = flags()
    seeds = list(dict.fromkeys(args.seeds or [args.seed]))
    settings = replace(settings_from(args), seed=seeds[0])
    publish = args.push_to_hub and MAIN_PROCESS

    from gpt2_quant.cache import Step
    from gpt2_quant.data import hub

    if publish:
        hub.check_login(args.push_to_hub)
    folder = settings.models_dir / BASELINE.folder
    asked = {name: value for name, value in vars(args).items() if name != "push_to_hub"}
    step = Step(settings.results_dir, "1_baseline_finetuning", asked)
    record = settings.results_dir / "records" / f"{BASELINE.key}.json"
    if settings.overwrite or not (step.complete() and record.is_file()):
        fine_tune(args, settings, seeds, folder, step)
    elif MAIN_PROCESS:
        print(f"{folder} is already complete for these flags; --overwrite trains it anew")
    if publish:
        print("published:", hub.push(folder, args.push_to_hub))


def fine_tune(args, settings, seeds, folder, step) -> None:
    from gpt2_quant.data.datasets import check_folder, load_splits
    from gpt2_quant.data.hub import fetch_model_folder

    check_folder(settings)  # faults of data and base model show before the large libraries load
    if looks_like_path(settings.base_model) and args.preset != "demo":
        fetch_model_folder(settings.base_model)

    from gpt2_quant.data.tokens import load_tokenizer, tokenize
    from gpt2_quant.measure.evaluation import evaluate_variant
    from gpt2_quant.models.cards import save_model, write_card
    from gpt2_quant.models.loading import load_classifier
    from gpt2_quant.training import evaluation
    from gpt2_quant.training import run as training
    from gpt2_quant.training.checkpoints import Checkpoints, exclusive

    accelerator, plan = training.prepare(args, settings)
    main_process, device = accelerator.is_main_process, str(accelerator.device)
    with exclusive(settings.models_dir, hold=main_process):
        with accelerator.main_process_first():  # it makes or downloads what is not there yet
            splits = load_splits(settings)
            base = fetch_model_folder(settings.base_model, settings.base_revision)
            tokenizer = load_tokenizer(base)
            tokens = {n: tokenize(tokenizer, s, settings.max_length) for n, s in splits.items()}
        scorer = evaluation.Scorer(accelerator, tokens, tokenizer.pad_token_id)

        outcomes = []
        for seed in seeds:
            this = replace(plan, seed=seed)
            identity = training.identity(settings, this, base, splits, accelerator.num_processes)
            seed_folder = training.training_folder(settings) / f"seed-{seed}"
            checkpoints = Checkpoints(seed_folder, identity, args.checkpoint_minutes)
            kept = folder if seed == seeds[0] else seed_folder / "model"
            outcome = training.finished(checkpoints, kept)
            if outcome is None:
                seed_everything(seed)  # draws the head, which the base lacks
                model = load_classifier(base, device, new_head=True)
                outcome, curve = training.fine_tune(
                    model, tokens["train"], this, checkpoints, scorer
                )
                if main_process:
                    save_model(model, tokenizer, kept, card="")  # it follows with the scores
                    training.note(outcome, checkpoints)
                    if kept == folder:
                        training.save_curve(curve, settings.results_dir)
                accelerator.wait_for_everyone()
            if len(seeds) > 1:
                outcome["test"] = scorer.test(load_classifier(kept, device))
            outcomes.append(outcome)

        model = load_classifier(folder, device)
        if main_process:
            record = evaluate_variant(
                settings, BASELINE.key, model, tokenizer, splits, folder=folder, baseline=folder,
                extra={"training": training.describe(plan, outcomes, settings, tokens["train"])},
                predict=scorer.predict,
            )  # fmt: skip
            card = write_card(folder, record)
            weights = [folder / "config.json", folder / "model.safetensors"]
            step.finish([*weights, card, *training.outputs(settings.results_dir)])
            print(training.summary(record))
        else:
            scorer.join(model, settings.batch_size)
        training.clean_up(accelerator, settings)


if __name__ == "__main__":
    run(main)
