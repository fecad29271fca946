"""Task 2.4: compare all models. Reads results, runs none.

    python src/5_compare_all_models.py                          everything below results/
    python src/5_compare_all_models.py --preset demo            everything below results/demo/
    python src/5_compare_all_models.py --baseline KEY          with another row as the baseline
    python src/5_compare_all_models.py --predictions FOLDER     with someone else's classifiers too
    python src/5_compare_all_models.py --dataset ID|FOLDER      and the ten texts that change most
    python src/5_compare_all_models.py --write-readme           and README's table from these rows

FOLDER holds a file per classifier, `name.csv` or `name.parquet`, with the columns id (0, 1, … over
the test rows), label and either logit_0, logit_1, … or one column logits with lists;
`name.validation.csv` beside it is for its temperature. With --probabilities they are probabilities.

Writes comparison_table.csv, .md and .tex, the figures (.png and .pdf), changed_texts.csv,
answer.txt, report_1.pdf when script 4 has run, and report_2.pdf, into the results folder.
"""

from pathlib import Path
from textwrap import fill

from gpt2_quant.cli import ROOT, parser, settings_from
from gpt2_quant.errors import run
from gpt2_quant.models.variants import BASELINE


def flags():
    result = parser(__doc__)
    add, formats = result.add_argument, ("terminal", "markdown", "latex")
    row = f"row to compare with (default: {BASELINE.key})"
    add("--baseline", metavar="KEY", default=BASELINE.key, help=row)
    add("--format", choices=formats, default=formats[0], help="to print in (default: terminal)")
    points = "largest loss of accuracy that counts as none, in points (default: %(default)g)"
    add("--margin", type=float, default=0.5, metavar="POINTS", help=points)
    outside = "outside classifiers' predictions (default: none)"
    add("--predictions", type=Path, metavar="FOLDER", help=outside)
    add("--probabilities", action="store_true", help="these are probabilities, not logits")
    add("--write-readme", action="store_true", help="write README.md's table (default: off)")
    args = result.parse_args()
    if not 0 < args.margin < 100:
        result.error(f"--margin {args.margin:g} is not between 0 and 100 points")
    args.device = "cpu"  # nothing is run here, so no device is looked for
    return args


def main() -> None:
    args = flags()
    results = settings_from(args).results_dir

    from gpt2_quant.cache import Step

    kept = [*results.glob("records/*.json"), *results.glob("predictions/*.parquet")]
    kept += args.predictions.glob("*") if args.predictions else []
    step = Step(results, "5_compare_all_models", vars(args), sorted(kept))
    # The data set's texts are shown in the terminal and kept nowhere, so they are asked for anew.
    if not args.dataset and step.complete():
        shown = "comparison_table.md", "answer.txt"
        return print(*((results / name).read_text(encoding="utf-8") for name in shown), sep="\n")

    from gpt2_quant.compare import changed_texts, figures, tables
    from gpt2_quant.compare.comparison import compare_results
    from gpt2_quant.records import write_csv, write_text
    from gpt2_quant.reports import findings, metrics_report, quantization_report

    outside = args.predictions, args.probabilities
    comparison = compare_results(results, args.baseline, *outside, margin=args.margin / 100)
    changed = changed_texts.most_changed(comparison)
    texts = changed_texts.read_test_texts(comparison, args.dataset) if args.dataset else None
    written = tables.write_tables(comparison, results)
    drawn = figures.draw_all(comparison, results)
    write_csv(results / "changed_texts.csv", changed)
    report = quantization_report.write_report(comparison, changed, drawn, results)
    answer = findings.printed_answer(comparison)
    write_text(results / "answer.txt", answer)
    written += [results / "changed_texts.csv", results / "answer.txt", report]
    notes = [f"\n{changed_texts.printed(changed, texts)}"] if texts else []
    if (results / "records" / "text_metrics.json").is_file():
        written.append(metrics_report.write_report(results))
    else:
        notes.append("report_1.pdf is left out: run python src/4_evaluation_metrics.py first")
    if args.write_readme:
        renewed = tables.write_readme(comparison, ROOT / "README.md")
        state = "is written anew" if renewed else "was up to date"
        notes.append(f"README.md: the results table {state}")

    step.finish(written)
    print(tables.FORMATS[args.format](comparison), *notes, sep="\n")
    names = ", ".join(path.name for path in written)
    print("\n" + fill(f"written to {results}: {names} and the figures (.png, .pdf)", 100))
    print(f"\n{answer}")


if __name__ == "__main__":
    run(main)
