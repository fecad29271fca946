"""Train the networks behind the coherence score on documents of your own, and test it on documents
held out.

    python benchmarks/fit_order_model.py --documents news.jsonl --output order_model.safetensors

`news.jsonl` has one JSON string a line: a document of at least five sentences. One in twelve is
held out, by its hash. The last line printed is JSON: for each fault the share of held-out documents
whose faulty version scores below the sound one, by continuity and by the whole score; 0.5 is
chance, a tie counts half. Summaries have three to five sentences, as many in the faulty one as in
the lead that it is compared with (one more where one is said again); "shuffle" and what follows are
of the whole document, 20 permutations.

The file in the package was made from 5,076 documents of BBC (2,088), Reuters-21578 (2,483 of at
least ten sentences), Brown (484) and WikiText-2 (lead sections, 21 with few unknown words), without
headlines, up to 16 sentences each: 4,647 to learn from, 429 held out. Twenty minutes on one core,
three of them without the embeddings, which `--cache` keeps for the next run.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

MOST_SENTENCES, HELD_OUT, PERMUTATIONS, NETWORKS = 16, 12, 20, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder that keeps the sentence vectors")
    args = parser.parse_args()

    import numpy as np
    from safetensors.torch import save_file

    from gpt2_quant.cache import Cache
    from gpt2_quant.metrics.embeddings import load_encoder
    from gpt2_quant.metrics.sentences import split_sentences
    from gpt2_quant.metrics.studies.order_training import examples, prepare, train
    from gpt2_quant.records import atomic_path

    encoder = load_encoder(cache=Cache(args.cache))
    groups = {False: [], True: []}
    for line in args.documents.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)
        sentences = split_sentences(text)[:MOST_SENTENCES]
        if len(sentences) >= 5:
            groups[hashlib.sha256(text.encode()).digest()[0] % HELD_OUT == 0].append(sentences)
    data = prepare(groups[False], encoder.sentence_vectors)
    networks = [train(*examples(data, seed=seed), seed=seed) for seed in range(NETWORKS)]
    state = {
        f"{i}.{name}": value.half()
        for i, network in enumerate(networks)
        for name, value in network.state_dict().items()
    }
    with atomic_path(args.output) as temporary:
        save_file(state, temporary, metadata={"made_by": "benchmarks/fit_order_model.py"})

    shares = held_out_shares(
        prepare(groups[True], encoder.sentence_vectors), networks, np.random.default_rng(0)
    )
    print(
        json.dumps(
            {
                "documents": len(groups[False]),
                "held_out": len(groups[True]),
                "order": ["continuity", "score"],
                **shares,
            }
        )
    )


def held_out_shares(data, networks, draw) -> dict[str, list[float]]:
    """Fault -> shares [by continuity, by the whole score] of documents that score above their
    faulty versions.
    """
    import numpy as np

    from gpt2_quant.metrics.coherence import coherence_parts
    from gpt2_quant.metrics.order_model import judge

    def scores(rows):
        vectors = data.vectors[rows]
        parts = coherence_parts(
            judge(vectors, [data.cues[0][row] for row in rows], networks), vectors
        )
        return np.array([parts[0], parts.prod()])

    wins = {}
    for document in range(len(data.length)):
        lead, whole, faulty = faulty_versions(data, document, draw)
        sound = {True: scores(whole), False: scores(lead)}
        for fault, (of_whole, versions) in faulty.items():
            gaps = [np.sign(sound[of_whole] - scores(rows)) / 2 + 0.5 for rows in versions]
            wins.setdefault(fault, []).append(np.mean(gaps, axis=0))
    return {fault: np.mean(group, axis=0).round(3).tolist() for fault, group in wins.items()}


def faulty_versions(data, document, draw):
    """(rows of the lead, rows of the whole document, fault -> (whether of the whole, rows of each
    version)).
    """
    import numpy as np

    n, start = int(data.length[document]), data.start[document]
    size = min(n - 2, int(draw.integers(3, 6)))
    other = (document + 1) % len(data.length)
    elsewhere = data.start[other] + np.arange(data.length[other])
    lead, whole, place = start + np.arange(size), start + np.arange(n), int(draw.integers(size))
    foreign = lead.copy()
    foreign[max(1, place)] = draw.choice(elsewhere)
    faulty = {
        "gaps": (
            False,
            [
                start
                + np.concatenate([[0], 2 + np.sort(draw.choice(n - 2, size - 1, replace=False))])
            ],
        ),
        "opens in the middle": (False, [lead + draw.integers(1, n - size + 1)]),
        "out of order": (False, [lead[shuffled(size, draw)]]),
        "foreign sentence": (False, [foreign]),
        "repeated sentence": (
            False,
            [np.insert(lead, draw.integers(place, size) + 1, lead[place])],
        ),
        "shuffle": (True, [whole[shuffled(n, draw)] for _ in range(PERMUTATIONS)]),
        "topic switch": (
            True,
            [np.concatenate([whole[: n // 2], elsewhere[len(elsewhere) // 2 :][: n - n // 2]])],
        ),
        "one sentence twice": (True, [np.insert(whole, place, whole[place])]),
        "each sentence twice": (True, [whole.repeat(2)]),
        "whole text twice": (True, [np.tile(whole, 2)]),
    }
    broken = {row: version for row, version in data.broken[document].items() if row in lead}
    if broken:
        row = draw.choice(list(broken))
        faulty["broken sentence"] = (False, [np.where(lead == row, broken[row], lead)])
    return lead, whole, faulty


def shuffled(n, draw):
    """A random order of n >= 2 that is not the original one."""
    while True:
        order = draw.permutation(n)
        if (order[1:] < order[:-1]).any():
            return order


if __name__ == "__main__":
    main()
