"""Task 2.1: fine-tune all of GPT-2 on AG News; every other classifier here is made from this one.

Trains for 3 epochs (AdamW, batch 16, 128 tokens), keeps the best on validation, and writes a plain
transformers folder, curve, predictions and record. Stopped at any moment, it goes on from there.

  python src/1_baseline_finetuning.py                # GPT-2 124M from the hub, on a CUDA GPU
  python src/1_baseline_finetuning.py --preset demo  # a miniature, on a CPU
  accelerate launch src/1_baseline_finetuning.py     # on all GPUs of this machine, or of several
  python src/1_baseline_finetuning.py --seeds 0 1 2  # mean and deviation; the first's model is kept
"""

from dataclasses import replace

from gpt2_quant import cli
from gpt2_quant.errors import run
from gpt2_quant.models.variants import BASELINE, TFIDF
from gpt2_quant.training import MAIN_PROCESS, learning_rate


def flags():
    result = cli.parser(__doc__)
    add = result.add_argument_group("training flags").add_argument
    # fmt: off
    add("--epochs", type=cli.epochs, metavar="N", help="passes over the train rows (default: 3)")
    add("--learning-rate", type=learning_rate, metavar="N", help="(default: 2e-5; demo: 5e-4)")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto",
        help="auto takes bf16 on GPUs that have it (default: auto)")
    add("--max-steps", type=cli.positive_int, metavar="N", help="end after N updates")
    add("--seeds", type=cli.seed, nargs="+", metavar="N", help="a training each (default: --seed)")
    add("--checkpoint-minutes", type=float, default=3.0, metavar="N", help="(default: 3)")
    add("--report-to", choices=("none", "tensorboard"), default="none",
        help="log the curve there too (default: none)")
    add("--export", type=cli.onnx_format, choices=("onnx",), help="write it so, too: a row")
    add("--push-to-hub", metavar="OWNER/NAME", help="publish the model, with its card, on the hub")
    # fmt: on
    return result.parse_args()


def main() -> None:
    args = flags()
    seeds = list(dict.fromkeys(args.seeds or [args.seed]))
    settings = replace(cli.settings_from(args), seed=seeds[0])
    publish = args.push_to_hub and MAIN_PROCESS

    from gpt2_quant.cache import Step
    from gpt2_quant.data import hub, tables

    if publish:
        hub.check_login(args.push_to_hub)
    folder = settings.models_dir / BASELINE.folder
    asked = vars(args) | {"push_to_hub": None, "export": None}  # which change nothing that it makes
    step = Step(settings.results_dir, "1_baseline_finetuning", asked, tables.data_files(args))
    if not step.complete():
        fine_tune(args, settings, seeds, folder, step)
    if args.export and MAIN_PROCESS:
        from gpt2_quant.measure.evaluation import evaluate_onnx

        evaluate_onnx(settings, [BASELINE], folder)
    if publish:
        print("published:", hub.push(folder, args.push_to_hub))


def fine_tune(args, settings, seeds, folder, step) -> None:
    from gpt2_quant.data import demo, hub
    from gpt2_quant.data.datasets import load_splits
    from gpt2_quant.data.tokens import load_tokenizer, tokenize
    from gpt2_quant.measure.evaluation import evaluate_tfidf, evaluate_variant, headline
    from gpt2_quant.models.cards import save_model, write_card
    from gpt2_quant.models.loading import check_float, load_classifier
    from gpt2_quant.training import run as training
    from gpt2_quant.training.checkpoints import exclusive
    from gpt2_quant.training.evaluation import Scorer

    accelerator, plan = training.prepare(args, settings)
    device = str(accelerator.device)
    with exclusive(settings.models_dir, hold=MAIN_PROCESS):
        with accelerator.main_process_first():  # it makes or downloads what is not there yet
            demo.prepare(settings)
            splits = load_splits(settings)
            base = hub.fetch_model_folder(settings.base_model, settings.base_revision)
            tokenizer, classes = load_tokenizer(check_float(base, True)), splits["train"].classes
            tokens = {n: tokenize(tokenizer, s, settings.max_length) for n, s in splits.items()}
        scorer = Scorer(accelerator, tokens, tokenizer.pad_token_id)
        outcomes = []
        for numbers, scores in training.shares(seeds, scorer):
            done = []
            for number in numbers:
                this, alone = replace(plan, seed=number), scores.accelerator
                checkpoints = training.checkpoints(args, settings, this, base, splits, alone)
                kept = folder if number == seeds[0] else None
                outcome = training.finished(checkpoints, kept, scored=len(seeds) > 1)
                if outcome is None:
                    cli.seed_everything(number)  # draws the head, which the base lacks
                    model = load_classifier(base, device, new_head=True, classes=classes)
                    outcome, curve = training.fine_tune(model, this, checkpoints, scores)
                    outcome |= {"test": scores.test(model)} if len(seeds) > 1 else {}
                    if alone.is_main_process:
                        if kept:
                            save_model(model, tokenizer, kept, card="")  # follows with the scores
                            training.save_curve(curve, settings.results_dir)
                        training.note(outcome, checkpoints)
                alone.wait_for_everyone()
                done.append(outcome)
            outcomes += training.gathered(done, scores)
        model = load_classifier(folder, device, classes=classes)
        if MAIN_PROCESS:
            record = evaluate_variant(
                settings, BASELINE.key, model, tokenizer, splits, folder=folder, baseline=folder,
                predict=scorer.predict, extra=training.describe(settings, plan, outcomes, scorer),
            )  # fmt: skip
            beside = evaluate_tfidf(settings, TFIDF, splits, folder)
            step.finish([write_card(folder, record), *training.outputs(folder, settings)])
            print(training.summary(record), headline(beside), sep="\n")
        else:
            scorer.join(model, settings.batch_size)
        training.clean_up(accelerator, settings)


if __name__ == "__main__":
    run(main)
