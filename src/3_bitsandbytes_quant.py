"""Quantize the fine-tuned classifier with bitsandbytes: LLM.int8() and NF4 (Task 2.3).

Each scheme is applied at load to models/baseline_gpt2 (or --checkpoint), saved, loaded again from
the disk, and measured as it came back: predictions, sizes, confusion matrix, record. The same
weights in float16 are measured beside them: the control row, without which a 16-bit quantized row
looks like a speed-up. In the end all variants that there are by now, script 2's too, are timed
together in this one process, so that their rows compare.

Runs on CUDA and, through bitsandbytes' CPU backend, without.

    python src/3_bitsandbytes_quant.py
    python src/3_bitsandbytes_quant.py --preset demo
    python src/3_bitsandbytes_quant.py --checkpoint owner/some-gpt2-classifier
"""

from gpt2_quant.cli import Settings, parser, run, seed_everything, settings_from


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument(
        "--checkpoint",
        metavar="ID|FOLDER",
        help="FP32 classifier to quantize (default: script 1's)",
    )
    args = flags.parse_args()
    settings = settings_from(args)

    from gpt2_quant.data import datasets as data
    from gpt2_quant.data import tokens
    from gpt2_quant.models import loading as checkpoints
    from gpt2_quant.steps import Step

    baseline = checkpoints.baseline_folder(settings.models_dir, args.checkpoint)
    step = Step(
        settings.results_dir, "3_bitsandbytes_quant", vars(args), step_inputs(settings, baseline)
    )
    if step.complete() and not settings.overwrite:
        print(f"Complete for these flags: {step.receipt}; --overwrite does it again.")
        return
    data.check_folder(settings)

    from gpt2_quant.measure import latency
    from gpt2_quant.models import bitsandbytes as bnb

    bnb.require()
    seed_everything(settings.seed)
    splits = data.load_splits(settings)
    tokenizer = tokens.load_tokenizer(baseline)
    # A checkpoint of someone else's has no FP32 row yet; script 1 has written its own.
    for key in ("baseline", "baseline_fp16") if args.checkpoint else ("baseline_fp16",):
        model = checkpoints.load_variant(key, settings.models_dir, settings.device, args.checkpoint)
        measure(settings, key, model, tokenizer, splits, baseline, baseline)

    for key in bnb.KEYS:
        folder = settings.models_dir / checkpoints.VARIANTS[key].folder
        model = bnb.quantize(baseline, key, settings.device)
        bnb.save(model, tokenizer, folder, key, baseline)
        model = checkpoints.load_variant(key, settings.models_dir, settings.device)
        facts = bnb.check_conversion(model, key)
        measure(settings, key, model, tokenizer, splits, folder, baseline, {"quantization": facts})

    timed = latency.measure_and_store(settings, checkpoint=args.checkpoint)
    step.finish(outputs(settings))
    print(latency.table(timed))


def step_inputs(settings: Settings, baseline) -> list:
    """The files whose change makes this script's results stale."""
    from gpt2_quant.models.loading import VARIANTS, weights_file

    others = [
        settings.models_dir / variant.folder / "model.safetensors" for variant in VARIANTS.values()
    ]
    return [
        weights_file(baseline),
        *(path for path in others if "bitsandbytes" not in path.parent.name),
    ]


def measure(
    settings: Settings,
    key: str,
    model,
    tokenizer,
    splits: dict,
    folder,
    baseline,
    extra: dict | None = None,
) -> None:
    """Evaluate one variant and say how it did."""
    from gpt2_quant.measure.evaluation import evaluate_variant

    record = evaluate_variant(
        settings, key, model, tokenizer, splits, folder=folder, baseline=baseline, extra=extra
    )
    accuracy = record["metrics"]["accuracy"]
    print(
        f"{record['variant']['label']}: accuracy {accuracy['value']:.4f} [{accuracy['low']:.4f}, {accuracy['high']:.4f}]"
    )


def outputs(settings: Settings) -> list:
    """Every file that this script promises."""
    from gpt2_quant.models import bitsandbytes as bnb
    from gpt2_quant.models.loading import VARIANTS

    made, results = [], settings.results_dir
    for key in ("baseline_fp16", *bnb.KEYS):
        made += [results / "records" / f"{key}.json", results / f"{key}_confusion_matrix.png"]
        made += [
            results / "predictions" / f"{key}{suffix}.parquet" for suffix in ("", ".validation")
        ]
    return made + [
        settings.models_dir / VARIANTS[key].folder / "model.safetensors" for key in bnb.KEYS
    ]


if __name__ == "__main__":
    run(main)
