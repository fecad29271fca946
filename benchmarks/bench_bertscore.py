"""BERTScore's speed: `text_metrics.bertscore` over SummEval against the bert-score package called
once a pair.

  OMP_NUM_THREADS=1 python benchmarks/bench_bertscore.py --human-judgements FOLDER    # two minutes on one core
  python benchmarks/bench_bertscore.py --documents 10 --pairs 40                      # less of it

Ours scores every summary against each of its references, uncached. The package, its model loaded
before the clock starts, scores a random sample of those pairs, half before and half after ours, so
that a machine that slows down slows both; its time for all pairs is the sample's times pairs over
sample. Both run MiniLM's last layer without idf. The difference is the largest over precision,
recall and F of the sample. Prints a table, and as the last line the same as JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from gpt2_quant import cli as common  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--human-judgements",
        metavar="hub|FOLDER",
        default="hub",
        help="where SummEval is (default: hub)",
    )
    parser.add_argument(
        "--documents",
        type=common.positive_int,
        default=100,
        metavar="N",
        help="of SummEval's (default: 100)",
    )
    parser.add_argument(
        "--pairs",
        type=common.positive_int,
        default=150,
        metavar="N",
        help="for the package (default: 150)",
    )
    args = parser.parse_args()

    import numpy as np
    import torch
    from bert_score import BERTScorer

    from gpt2_quant.metrics.bertscore import bertscore
    from gpt2_quant.metrics.embeddings import N_LAYERS, load_encoder, model_folder
    from gpt2_quant.metrics.studies.human_judgements import load_human_judgements

    summeval, _ = load_human_judgements(args.human_judgements)
    candidates = [text for row in summeval.summaries[: args.documents] for text in row]
    references = [
        group for group in summeval.references[: args.documents] for _ in summeval.systems
    ]
    pairs = [
        (text, reference)
        for text, group in zip(candidates, references, strict=True)
        for reference in group
    ]
    sample = [
        pairs[i]
        for i in np.random.default_rng(0).choice(len(pairs), size=args.pairs, replace=False)
    ]

    encoder = load_encoder()
    package = BERTScorer(model_type=str(model_folder()), num_layers=N_LAYERS, device="cpu")
    theirs = []

    def package_seconds(some: list[tuple[str, str]]) -> float:
        start = time.perf_counter()
        theirs.extend(
            torch.cat(package.score([text], [reference])).tolist() for text, reference in some
        )
        return time.perf_counter() - start

    seconds = package_seconds(sample[: args.pairs // 2])
    start = time.perf_counter()
    bertscore(candidates, references, encoder)
    ours_seconds = time.perf_counter() - start
    seconds += package_seconds(sample[args.pairs // 2 :])

    again = bertscore(
        [text for text, _ in sample], [[reference] for _, reference in sample], encoder
    )
    ours = np.column_stack([again.parts["precision"], again.parts["recall"], again.values])
    package_all = seconds / args.pairs * len(pairs)
    result = {
        "pairs": len(pairs),
        "threads": torch.get_num_threads(),
        "ours_s": round(ours_seconds, 2),
        "package_sample_pairs": args.pairs,
        "package_sample_s": round(seconds, 2),
        "package_all_s": round(package_all, 1),
        "times_as_fast": round(package_all / ours_seconds, 1),
        "largest_difference": float(np.abs(ours - np.array(theirs)).max()),
    }
    print(f"ours, {len(pairs):,} pairs: {ours_seconds:.1f} s")
    print(
        f"bert-score once a pair, {args.pairs} pairs: {seconds:.1f} s, so {package_all:.0f} s for all"
    )
    print(
        f"{result['times_as_fast']} times as fast; largest difference {result['largest_difference']:.1e}"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    common.run(main)
