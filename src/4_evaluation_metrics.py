"""Task 1: what ROUGE, BLEU, chrF, BERTScore, perplexity and the Semantic Coherence Score see.

Parts of the study, all run unless --only names some, reported in report_1.pdf:
  scores        every metric on a built-in set of retold stories       -> metric_scores.csv
  edits         controlled damage: what does each metric notice?       -> metric_edits.csv, .png
  humans        SummEval and STS Benchmark: agreement with people      -> metric_meta_evaluation.csv
  coherence     shuffle test and controls for coherence metrics        -> metric_coherence.csv, .png
  quantization  the language model as every variant       -> language_model_quantization.csv, .png

    python src/4_evaluation_metrics.py --human-judgements FOLDER --only humans coherence
    python src/4_evaluation_metrics.py --candidates mine.txt --references theirs.txt   # your texts
"""

from pathlib import Path

from gpt2_quant.cache import Step
from gpt2_quant.cli import parser, settings_from
from gpt2_quant.data import demo, hub
from gpt2_quant.errors import UserError, run

PARTS = ("scores", "edits", "humans", "coherence", "quantization")


def flags():
    result = parser(__doc__)
    add = result.add_argument
    add("--only", nargs="+", choices=PARTS, help="run some parts")
    add("--human-judgements", metavar="hub|FOLDER", help="ratings (default: hub; demo: none)")
    add("--held-out-texts", type=Path, metavar="FILE", help="documents to confirm coherence on")
    add("--candidates", type=Path, metavar="FILE", help="score it: one text per line, or JSONL")
    add("--references", type=Path, metavar="FILE", help="its references, line by line")
    return result.parse_args()


def main() -> None:
    args = flags()
    settings = settings_from(args)
    if args.references and not args.candidates:
        raise UserError("--references needs --candidates: name the file to score")
    demo.prepare(settings)
    if args.candidates:
        return score_own_texts(args, settings)
    base = hub.fetch_model_folder(settings.base_model, settings.base_revision)
    read = [base / "model.safetensors", *filter(None, [args.held_out_texts])]
    step = Step(settings.results_dir, "4_evaluation_metrics", vars(args), read)
    if step.complete():
        return

    from gpt2_quant.metrics import suite
    from gpt2_quant.metrics.studies import coherence_study, edit_study, figures, human_study, values
    from gpt2_quant.metrics.studies.human_judgements import judgements_or_none
    from gpt2_quant.metrics.studies.quantization_cost import cost_of_all
    from gpt2_quant.metrics.studies.study import SIZES, Study, news_or_none
    from gpt2_quant.reports.metrics_report import write_report

    size, parts = SIZES[settings.preset], set(args.only or PARTS)
    people = judgements_or_none(args.human_judgements, settings.preset, parts)
    news = news_or_none(settings, parts, people)
    wholes = coherence_study.whole_texts(people, news, args.held_out_texts, size.coherence_texts)
    tools = suite.load_tools(settings, with_encoder=parts != {"quantization"})
    study = Study(settings, tools, news)

    if "scores" in parts:  # two stories retold; the zero of BERTScore, on unrelated news
        stories, corpus = values.score_examples(tools)
        zero = values.unrelated_bertscore(study.news[: size.baseline_texts], tools)
        study.write("metric_scores", stories)
        study.keep("scores", [corpus], corpus=corpus, texts=stories, bertscore_baseline=zero)

    if "edits" in parts:  # texts damaged in known ways: how far does each metric fall?
        originals, source = edit_study.choose_originals(people, study.news, size.edits)
        pairs = edit_study.edit_pairs(originals, size.edits, size.strengths)
        after, before = edit_study.score_edits(originals, pairs, tools)
        table = edit_study.edit_table(pairs, after, before)
        ranking = edit_study.meaning_ranking(pairs, after)
        study.write("metric_edits", table, figures.edit_heatmap)
        study.keep("edits", [ranking], source=source, table=table, ranking=ranking)

    if people and "humans" in parts:  # correlation with ratings of summaries and of sentence pairs
        summeval, sentence_pairs = people
        metrics = human_study.summeval_metrics(summeval, tools)
        table = human_study.summeval_table(summeval, metrics)
        rivals = human_study.coherence_differences(summeval, metrics)
        stsb = human_study.stsb_table(sentence_pairs, tools)
        study.write("metric_meta_evaluation", table)
        study.draw("metric_human_agreement", table, figures.human_agreement)
        tables = {"summeval": table, "coherence_differences": rivals, "stsb": stsb}
        shown = [human_study.by_quality(table), rivals, stsb]
        study.keep("humans", shown, **tables, undefined_scs=human_study.undefined(metrics["SCS"]))

    if "coherence" in parts:  # texts against versions with order or unity broken
        for name, (documents, source) in wholes.items():
            table = coherence_study.control_table(documents, tools, size.permutations)
            study.write(f"metric_{name}", table, figures.coherence_controls)
            study.keep(name, [coherence_study.by_control(table)], source=source, table=table)

    if "quantization" in parts:  # the language model as every variant, on held-out news
        table, missing = cost_of_all(tools.language_model, base, study.news[: size.held_out])
        study.write("language_model_quantization", table, figures.quantization_cost)
        study.keep("quantization", [table], source="test split", table=table, missing=missing)

    study.save()
    report = write_report(settings.results_dir)
    step.finish([*study.outputs, report])
    print(f"Report: {report}")


def score_own_texts(args, settings) -> None:
    from gpt2_quant.metrics import suite, texts

    candidates, references = texts.read_files(args.candidates, args.references)
    output = settings.results_dir / "own_scores.csv"
    table = suite.score_own_texts(candidates, references, suite.load_tools(settings), output)
    print(table.to_string(index=False, float_format="{:.4f}".format))
    blank = sum(not text.strip() for text in candidates)
    print(f"Each text's values: {output} (none for blank ones: {blank}).")


if __name__ == "__main__":
    run(main)
