"""Task 2.4: compare all models. Reads results, runs none.

    python src/5_compare_all_models.py                          everything below results/
    python src/5_compare_all_models.py --preset demo            everything below results/demo/
    python src/5_compare_all_models.py --baseline baseline_fp16
    python src/5_compare_all_models.py --predictions FOLDER     with someone else's classifiers as further rows
    python src/5_compare_all_models.py --dataset ID|FOLDER      and the ten texts that change most, in the terminal only
    python src/5_compare_all_models.py --write-readme           and README's table from the same rows

FOLDER holds a file a classifier, `name.csv` or `name.parquet`, with the columns id (0, 1, … over
the test rows), label and either logit_0, logit_1, … or one column logits with lists;
`name.validation.csv` beside it is for its temperature.

Writes comparison_table.csv, .md and .tex, the figures (.png and .pdf), changed_texts.csv,
report_1.pdf when script 4 has run, and report_2.pdf, into the results folder.
"""

from pathlib import Path

from gpt2_quant.cli import ROOT, parser, settings_from
from gpt2_quant.errors import run


def arguments():
    """The shared flags, and this script's."""
    flags = parser(__doc__)
    flags.add_argument(
        "--baseline",
        metavar="KEY",
        default="baseline",
        help="row to compare with (default: baseline)",
    )
    flags.add_argument(
        "--format",
        choices=("terminal", "markdown", "latex"),
        default="terminal",
        help="of the printed table (default: terminal)",
    )
    flags.add_argument(
        "--predictions",
        type=Path,
        metavar="FOLDER",
        help="outside classifiers' predictions (default: none)",
    )
    flags.add_argument(
        "--write-readme", action="store_true", help="write README.md's results table (default: off)"
    )
    return flags.parse_args()


def main() -> None:
    """Compare, write, print."""
    args = arguments()
    args.device = "cpu"  # nothing is run here, so no device is looked for
    settings = settings_from(args)
    results = settings.results_dir

    from gpt2_quant.compare import changed_texts, tables
    from gpt2_quant.compare import figures as comparison_plots
    from gpt2_quant.compare.comparison import compare_results
    from gpt2_quant.reports import compile_report
    from gpt2_quant.reports.quantization_report import report_data

    comparison = compare_results(results, args.baseline, args.predictions)
    texts = changed_texts.read_test_texts(comparison, args.dataset) if args.dataset else None
    written = tables.write_tables(comparison, results)
    figures = comparison_plots.draw_all(comparison, results)
    changed = changed_texts.most_changed(comparison)
    written += [changed_texts.write(changed, results)]
    figures |= {
        name: results / f"{name}.pdf" for name in ("training_curve", "quantization_error_heatmap")
    }
    data = report_data(comparison, changed, results)
    compile_report("report_2.typ", data, figures, results / "report_2.pdf")
    written += [results / "report_2.pdf"]
    notes = [f"\n{changed_texts.printed(changed, texts)}"] if texts else []
    if (results / "records" / "text_metrics.json").is_file():
        from gpt2_quant.reports.metrics_report import write_report

        written += [write_report(results)]
    else:
        notes += ["report_1.pdf is left out: run python src/4_evaluation_metrics.py first"]
    if args.write_readme:
        renewed = tables.write_readme(comparison, ROOT / "README.md")
        notes += [
            f"README.md: the results table {'is written anew' if renewed else 'was up to date'}"
        ]
    print(tables.FORMATS[args.format](comparison), *notes, sep="\n")
    print(
        f"\nwritten to {results}: {', '.join(path.name for path in written)} and the figures (.png, .pdf)"
    )


if __name__ == "__main__":
    run(main)
