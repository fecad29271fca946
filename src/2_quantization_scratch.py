"""Task 2.2: GPT-2 quantized by hand, three ways, from the classifier that script 1 made.

int8_scratch        one scale and zero-point a tensor; a quarter of the file, dequantized when it is loaded
int8_scratch_w8a8   int8 weights times int8 activations, summed as integers; a quarter of the memory while running
nf4_scratch         4-bit NormalFloat with doubly quantized scales, embeddings included; an eighth

Each is saved, loaded again from the disk and measured as loaded: accuracy on the test split, size
by part, latency beside every variant that exists. Then: where the error comes from
(results/quantization_error.csv and its heat map).

    python src/2_quantization_scratch.py
    python src/2_quantization_scratch.py --checkpoint path/to/any-gpt2-classifier
    python src/2_quantization_scratch.py --preset demo
"""

from gpt2_quant import cli as common

KEYS = ("int8_scratch", "int8_scratch_w8a8", "nf4_scratch")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--checkpoint", metavar="ID|FOLDER", help="classifier to quantize (default: script 1's)"
    )
    parser.add_argument(
        "--skip-timing",
        action="store_true",
        help="leave the timing to script 3, which times all variants anew",
    )
    args = parser.parse_args()
    settings = common.settings_from(args)

    from gpt2_quant.data.datasets import check_folder, load_splits
    from gpt2_quant.data.tokens import load_tokenizer, tokenize
    from gpt2_quant.models import loading as checkpoints
    from gpt2_quant.steps import Step

    baseline = checkpoints.baseline_folder(settings.models_dir, args.checkpoint)
    flags = {
        name: value for name, value in vars(args).items() if name != "skip_timing"
    }  # timing leaves no file of this script's
    step = Step(
        settings.results_dir, "2_quantization_scratch", flags, [checkpoints.weights_file(baseline)]
    )
    if (
        step.complete()
        and not settings.overwrite
        and all(path.is_file() for path in record_paths(settings))
    ):
        print(f"Complete for these flags: {step.receipt}; --overwrite does it again.")
        return
    check_folder(settings)

    from gpt2_quant.measure import error_analysis, latency
    from gpt2_quant.measure.evaluation import evaluate_variant
    from gpt2_quant.models import folders

    common.seed_everything(settings.seed)
    splits, tokenizer = load_splits(settings), load_tokenizer(baseline)
    model = checkpoints.load_classifier(baseline, settings.device)

    for key in KEYS:
        folder = settings.models_dir / checkpoints.VARIANTS[key].folder
        folders.save_quantized(model, key, tokenizer, folder, source=baseline.name)
        loaded = checkpoints.load_variant(key, settings.models_dir, settings.device)
        record = evaluate_variant(
            settings, key, loaded, tokenizer, splits, folder=folder, baseline=baseline,
            extra={"quantization": folders.describe(loaded)},
        )  # fmt: skip
        accuracy = record["metrics"]["accuracy"]
        print(
            f"{record['variant']['label']}: accuracy {accuracy['value']:.4f} [{accuracy['low']:.4f}, {accuracy['high']:.4f}]"
        )
        del loaded

    tokens = tokenize(tokenizer, splits["validation"], settings.max_length)
    analysis = error_analysis.analyse(model, tokens, tokenizer.pad_token_id, settings)
    written = analysis.save(settings.results_dir)
    if not args.skip_timing:
        print(latency.table(latency.measure_and_store(settings, checkpoint=args.checkpoint)))
    step.finish(outputs(settings) + written)
    print(analysis.summary())


def record_paths(settings) -> list:
    """The records of the three variants; other scripts add to them, so they are asked for but not
    compared.
    """
    return [settings.results_dir / "records" / f"{key}.json" for key in KEYS]


def outputs(settings) -> list:
    """The models, predictions and figures that this script promises."""
    from gpt2_quant.models.loading import VARIANTS

    made, results = [], settings.results_dir
    for key in KEYS:
        folder = settings.models_dir / VARIANTS[key].folder
        made += [
            folder / "model.safetensors",
            folder / "config.json",
            results / f"{key}_confusion_matrix.png",
        ]
        made += [
            results / "predictions" / f"{key}{suffix}.parquet" for suffix in ("", ".validation")
        ]
    return made


if __name__ == "__main__":
    common.run(main)
