"""Task 2.3: quantize the fine-tuned classifier with bitsandbytes, LLM.int8() and NF4.

Each scheme is applied at load to models/baseline_gpt2 (or --checkpoint), saved, loaded again from
the disk, and measured as it came back: predictions, sizes, confusion matrix, record. The same
weights in float16 and in TF32 are measured beside them, where the device has that arithmetic: the
control rows, without which a 16-bit quantized row looks like a speed-up. In the end all variants
that there are by now, script 2's too, are timed together in this one process, so that their rows
compare.

Runs on CUDA and, through bitsandbytes' CPU backend, without.

    python src/3_bitsandbytes_quant.py
    python src/3_bitsandbytes_quant.py --preset demo
    python src/3_bitsandbytes_quant.py --checkpoint owner/some-gpt2-classifier
"""

from gpt2_quant.cli import parser, seed_everything, settings_from
from gpt2_quant.errors import run
from gpt2_quant.models.variants import BASELINE, ONNX, VARIANTS, made_by


def flags():
    result = parser(__doc__)
    result.add_argument(
        "--checkpoint",
        metavar="ID|FOLDER",
        help="FP32 classifier to quantize (default: script 1's)",
    )
    return result.parse_args()


def main() -> None:
    args = flags()
    settings = settings_from(args)
    models, results, variants = settings.models_dir, settings.results_dir, made_by(3)

    from gpt2_quant.cache import Step
    from gpt2_quant.data.tables import data_files
    from gpt2_quant.models.checkpoints import weights_files
    from gpt2_quant.models.loading import baseline_folder

    baseline = baseline_folder(models, args.checkpoint)
    others = [v for v in VARIANTS.values() if v.method and v not in variants]  # timed here, too
    inputs = [*weights_files(baseline), *(models / v.folder / "model.safetensors" for v in others)]
    inputs += [models / v.folder / v.first_file for v in ONNX.values()]
    step = Step(results, "3_bitsandbytes_quant", vars(args), [*inputs, *data_files(args)])
    if step.complete():
        return

    import torch

    from gpt2_quant.data import demo
    from gpt2_quant.data.datasets import load_splits
    from gpt2_quant.data.tokens import load_tokenizer
    from gpt2_quant.measure import latency
    from gpt2_quant.measure.evaluation import evaluate_variant, headline, written
    from gpt2_quant.models.bitsandbytes import require
    from gpt2_quant.models.cards import save_model, write_card
    from gpt2_quant.models.loading import load_classifier, load_variant, unavailable

    require()
    demo.prepare(settings)
    seed_everything(settings.seed)
    splits, tokenizer = load_splits(settings), load_tokenizer(baseline)
    classes = splits["train"].classes
    model = load_classifier(baseline, settings.device, classes=classes)

    outputs = []
    for variant in list(variants):
        if why := unavailable(variant, settings.device):
            print(why)
            variants.remove(variant)
    # A checkpoint of someone else's has no FP32 row yet; script 1 has written its own.
    for variant in [BASELINE, *variants] if args.checkpoint else variants:
        folder, facts = baseline, {}
        if variant.method:
            folder = models / variant.folder
            quantized = variant.how.quantize(variant.key, model, baseline, torch.float16)
            save_model(quantized, tokenizer, folder, card="")  # it follows with the scores
            outputs += [folder / "model.safetensors"]
            del quantized
        loaded = load_variant(variant.key, models, settings.device, args.checkpoint, classes)
        if variant.method:
            facts = {"quantization": variant.how.facts(loaded)}
        record = evaluate_variant(
            settings, variant.key, loaded, tokenizer, splits, folder=folder, baseline=baseline,
            extra=facts,
        )  # fmt: skip
        if variant.method:
            write_card(folder, record, variant, args.checkpoint or baseline)
        print(headline(record))
        outputs += written(results, variant.key)

    timed = latency.measure_and_store(settings, checkpoint=args.checkpoint)
    step.finish(outputs)
    print(latency.table(timed))


if __name__ == "__main__":
    run(main)
