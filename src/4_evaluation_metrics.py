"""Task 1: what ROUGE, BLEU, chrF, BERTScore, perplexity and the Semantic Coherence Score measure,
and where they fail.

Parts of the study, all run unless --only names some:
  scores        every metric on a built-in set of retold stories       -> metric_scores.csv
  edits         controlled damage: what does each metric notice?       -> metric_edits.csv, .png
  humans        SummEval and STS Benchmark: agreement with people      -> metric_meta_evaluation.csv
  coherence     shuffle test and controls for coherence metrics        -> metric_coherence.csv, .png
  quantization  the language model under every weight scheme           -> language_model_quantization.csv, .png
All go into records/text_metrics.json and report_1.pdf. Scores are cached by content in
results/cache.

    python src/4_evaluation_metrics.py
    python src/4_evaluation_metrics.py --human-judgements path/to/folder --only humans coherence
    python src/4_evaluation_metrics.py --candidates mine.txt --references theirs.txt    # scores your files, prints the table
"""

from pathlib import Path

from gpt2_quant import cli as common
from gpt2_quant.errors import UserError, run

PARTS = ("scores", "edits", "humans", "coherence", "quantization")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        metavar="PART",
        help=f"run some parts: {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--human-judgements",
        metavar="hub|FOLDER",
        help="people's ratings (default: hub; in the demo none)",
    )
    parser.add_argument(
        "--candidates", type=Path, metavar="FILE", help="score this file: one text a line, or JSONL"
    )
    parser.add_argument(
        "--references", type=Path, metavar="FILE", help="its references, line by line"
    )
    args = parser.parse_args()
    settings = common.settings_from(args)
    if args.references and not args.candidates:
        raise UserError("--references needs --candidates: name the file to score")
    if args.candidates:
        score_own_files(args, settings)
    else:
        run_study(args, settings)


def score_own_files(args, settings) -> None:
    """The part for daily use: the table of all metrics for a user's files."""
    from gpt2_quant.data.datasets import load_splits
    from gpt2_quant.metrics.suite import load_tools, score_own_texts
    from gpt2_quant.metrics.texts import read_files

    texts, references = read_files(args.candidates, args.references)
    if settings.preset == "demo":
        load_splits(settings)  # makes the demo's language model where it is not there yet
    output = settings.results_dir / "own_scores.csv"
    table = score_own_texts(texts, references, load_tools(settings), output)
    blank = sum(not text.strip() for text in texts)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    print(f"Each text's values: {output}" + (f" (none for blank ones: {blank})." if blank else "."))


def run_study(args, settings) -> None:
    """The parts asked for, the record, the report."""
    from gpt2_quant.cache import Step
    from gpt2_quant.data.datasets import load_splits
    from gpt2_quant.data.hub import fetch_model_folder
    from gpt2_quant.metrics import suite
    from gpt2_quant.metrics.studies import study

    parts = args.only or list(PARTS)
    test = load_splits(settings)["test"]  # in the demo this makes the base model, too
    weights = fetch_model_folder(settings.base_model, settings.base_revision) / "model.safetensors"
    step = Step(settings.results_dir, "4_evaluation_metrics", vars(args), [weights])
    if step.complete() and not settings.overwrite:
        print(f"Complete for these flags: {step.receipt}; --overwrite does it again.")
        return
    common.seed_everything(settings.seed)
    humans = load_humans(args, settings) if study.READ_HUMANS & set(parts) else None
    parts = [part for part in parts if part != "humans" or humans]
    tools = suite.load_tools(settings, with_encoder=set(parts) != {"quantization"})
    inputs = study.Inputs(settings, tools, list(test.texts), humans)
    sections = {}
    for part in parts:
        sections[part], shown = study.RUNNERS[part](inputs)
        print(f"\n{part}\n{shown}", flush=True)
    study.store(inputs, sections, test.describe())
    report = study.typeset(settings.results_dir)
    outputs = [settings.results_dir / name for part in parts for name in study.OUTPUTS[part]]
    step.finish([*outputs, report])
    print(f"\nReport: {report}")


def load_humans(args, settings):
    """People's judgements, or None with a sentence that says why the part is left out."""
    from gpt2_quant.metrics.studies.human_judgements import load_human_judgements

    if args.human_judgements is None and settings.preset == "demo":
        print(
            "Left out: humans (the demo has no human judgements; --human-judgements hub|FOLDER adds them)."
        )
        return None
    try:
        return load_human_judgements(args.human_judgements or "hub")
    except UserError as fault:
        if args.human_judgements:
            raise
        print(f"Left out: humans ({fault}).")
        return None


if __name__ == "__main__":
    run(main)
