"""Task 2.2: GPT-2 quantized by hand, from the classifier that script 1 made.

INT8 Scratch        one scale and zero-point per tensor; a quarter of the file, floats once loaded
INT8 Scratch W8A8   int8 weights times int8 activations, summed as integers; a quarter of the memory
FP8 Scratch         the same with eight-bit floats (e4m3); emulated where the GPU has none
NF4 Scratch         4-bit NormalFloat, doubly quantized scales, embeddings included; an eighth

Each is saved, loaded again from the disk and measured as loaded: accuracy on the test split, size
by part, latency beside every variant that exists. Then: where the error comes from
(results/quantization_error.csv and its heat map).

    python src/2_quantization_scratch.py
    python src/2_quantization_scratch.py --checkpoint path/to/any-gpt2-classifier
    python src/2_quantization_scratch.py --preset demo
    python src/2_quantization_scratch.py --export onnx     # as ONNX files, too, each a row
"""

from gpt2_quant.cli import onnx_format, parser, seed_everything, settings_from
from gpt2_quant.errors import run
from gpt2_quant.models.variants import made_by


def flags():
    result = parser(__doc__)
    result.add_argument(
        "--checkpoint", metavar="ID|FOLDER", help="classifier to quantize (default: script 1's)"
    )
    result.add_argument(
        "--skip-timing",
        action="store_true",
        help="leave the timing to script 3, which times all variants anew",
    )
    as_onnx = "write each model as an ONNX file, too, and score that (default: none)"
    result.add_argument("--export", type=onnx_format, choices=("onnx",), help=as_onnx)
    return result.parse_args()


def main() -> None:
    args = flags()
    settings = settings_from(args)
    results, variants = settings.results_dir, made_by(2)

    from gpt2_quant.cache import Step
    from gpt2_quant.data.tables import data_files
    from gpt2_quant.models.checkpoints import weights_files
    from gpt2_quant.models.loading import baseline_folder

    baseline = baseline_folder(settings.models_dir, args.checkpoint)
    # Neither changes a file that this script promises.
    asked = vars(args) | {"skip_timing": None, "export": None}
    inputs = [*weights_files(baseline), *data_files(args)]
    step = Step(results, "2_quantization_scratch", asked, inputs)
    done = step.complete()
    if done and not args.export:
        return

    import torch

    from gpt2_quant.data import demo
    from gpt2_quant.data.datasets import load_splits
    from gpt2_quant.data.tokens import load_tokenizer, tokenize
    from gpt2_quant.measure import error_analysis, latency
    from gpt2_quant.measure.evaluation import evaluate_onnx, evaluate_variant, headline, written
    from gpt2_quant.models.cards import save_model, write_card
    from gpt2_quant.models.loading import load_classifier, load_variant

    if done:
        return evaluate_onnx(settings, variants, baseline)
    demo.prepare(settings)
    seed_everything(settings.seed)
    splits, tokenizer = load_splits(settings), load_tokenizer(baseline)
    classes = splits["train"].classes
    model = load_classifier(baseline, settings.device, classes=classes)

    outputs = []
    for variant in variants:
        folder = settings.models_dir / variant.folder
        quantized = variant.how.quantize(variant.key, model, baseline, torch.float32)
        save_model(quantized, tokenizer, folder, card="")  # it follows with the scores
        loaded = load_variant(variant.key, settings.models_dir, settings.device, classes=classes)
        record = evaluate_variant(
            settings, variant.key, loaded, tokenizer, splits, folder=folder, baseline=baseline,
            extra={"quantization": variant.how.facts(loaded)},
        )  # fmt: skip
        write_card(folder, record, variant, args.checkpoint or baseline)
        print(headline(record))
        outputs += [folder / "model.safetensors", folder / "config.json"]
        outputs += written(results, variant.key)
        del quantized, loaded

    tokens = tokenize(tokenizer, splits["validation"], settings.max_length)
    analysis = error_analysis.analyse(model, tokens, tokenizer.pad_token_id, settings)
    outputs += analysis.save(results)
    if args.export:
        evaluate_onnx(settings, variants, baseline)
    if not args.skip_timing:
        print(latency.table(latency.measure_and_store(settings, checkpoint=args.checkpoint)))
    step.finish(outputs)
    print(analysis.summary())


if __name__ == "__main__":
    run(main)
