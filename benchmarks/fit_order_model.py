"""Train the networks behind the coherence score on documents of your own, and test it on documents
held out.

    python benchmarks/fit_order_model.py --documents news.jsonl --output order_model.safetensors

`news.jsonl` has one JSON string a line: a document of at least five sentences. One in twelve is
held out, by its hash. The last line printed is JSON: for each fault the fraction of held-out
documents whose faulty version scores below the sound one, by continuity and by the whole score; 0.5
is chance, a tie counts half. Summaries have three to five sentences, as many in the faulty one as
in the lead that it is compared with (one more where one is said again); "shuffle" and what follows
are of the whole document, 20 permutations.

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

import numpy as np  # noqa: E402

MOST_SENTENCES, HELD_OUT, PERMUTATIONS = 16, 12, 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder that keeps the sentence vectors")
    args = parser.parse_args()

    from order_training import examples, prepare, train
    from safetensors.torch import save_file
    from torch.nn import ModuleList

    from gpt2_quant.cache import Cache
    from gpt2_quant.metrics.embeddings import Encoder
    from gpt2_quant.metrics.order_model import N_NETWORKS
    from gpt2_quant.records import atomic_path

    encoder = Encoder(cache=Cache(args.cache))
    learned, held_out = read_documents(args.documents)
    data = prepare(learned, encoder.sentence_vectors)
    networks = [train(*examples(data, seed=seed), seed=seed) for seed in range(N_NETWORKS)]
    state = {name: w.half() for name, w in ModuleList(networks).state_dict().items()}
    with atomic_path(args.output) as temporary:
        save_file(state, temporary, metadata={"made_by": "benchmarks/fit_order_model.py"})

    held_out_data = prepare(held_out, encoder.sentence_vectors)
    fractions = held_out_fractions(held_out_data, networks, np.random.default_rng(0))
    counts = {"documents": len(learned), "held_out": len(held_out)}
    print(json.dumps({**counts, "order": ["continuity", "score"], **fractions}))


def read_documents(path: Path) -> tuple[list[list[str]], list[list[str]]]:
    """The sentences of each document: (those to learn from, those held out)."""
    from gpt2_quant.metrics.sentences import split_sentences

    learned, held_out = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)
        sentences = split_sentences(text)[:MOST_SENTENCES]
        if len(sentences) >= 5:
            hold_out = hashlib.sha256(text.encode()).digest()[0] % HELD_OUT == 0
            (held_out if hold_out else learned).append(sentences)
    return learned, held_out


def held_out_fractions(data, networks, rng) -> dict[str, list[float]]:
    """Fault -> fractions [by continuity, by the whole score] of documents that score above their
    faulty versions.
    """
    from gpt2_quant.metrics.coherence import coherence_parts
    from gpt2_quant.metrics.order_model import judge

    def scores(rows):
        vectors, cues = data.vectors[rows], [data.cues[0][row] for row in rows]
        parts = coherence_parts(judge(vectors, cues, networks), vectors)
        return np.array([parts[0], parts.prod()])

    wins: dict[str, list] = {}
    for document in range(len(data.length)):
        for sound, faulty in faulty_versions(data, document, rng):
            sound_scores = scores(sound)
            for fault, versions in faulty.items():
                signs = [np.sign(sound_scores - scores(rows)) for rows in versions]
                wins.setdefault(fault, []).append(np.mean(signs, axis=0) / 2 + 0.5)
    return {fault: np.mean(group, axis=0).round(3).tolist() for fault, group in wins.items()}


def faulty_versions(data, document, rng):
    """For the lead and for the whole document: (its rows, fault -> rows of each faulty version)."""
    n, start = int(data.length[document]), data.start[document]
    size = min(n - 2, int(rng.integers(3, 6)))
    other = (document + 1) % len(data.length)
    elsewhere = data.start[other] + np.arange(data.length[other])
    lead, whole, position = start + np.arange(size), start + np.arange(n), int(rng.integers(size))
    foreign = lead.copy()
    foreign[max(1, position)] = rng.choice(elsewhere)
    with_gaps = np.append(0, 2 + np.sort(rng.choice(n - 2, size - 1, replace=False)))
    of_lead = {
        "gaps": [start + with_gaps],
        "opens in the middle": [lead + rng.integers(1, n - size + 1)],
        "out of order": [lead[shuffled(size, rng)]],
        "foreign sentence": [foreign],
        "repeated sentence": [np.insert(lead, rng.integers(position, size) + 1, lead[position])],
    }
    of_whole = {
        "shuffle": [whole[shuffled(n, rng)] for _ in range(PERMUTATIONS)],
        "topic switch": [np.append(whole[: n // 2], elsewhere[len(elsewhere) // 2 :])[:n]],
        "one sentence twice": [np.insert(whole, position, whole[position])],
        "each sentence twice": [whole.repeat(2)],
        "whole text twice": [np.tile(whole, 2)],
    }
    broken = {row: version for row, version in data.broken[document].items() if row in lead}
    if broken:
        row = rng.choice(list(broken))
        of_lead["broken sentence"] = [np.where(lead == row, broken[row], lead)]
    return (lead, of_lead), (whole, of_whole)


def shuffled(n, rng):
    """A random order of n >= 2 that is not the original one."""
    while True:
        order = rng.permutation(n)
        if (order[1:] < order[:-1]).any():
            return order


if __name__ == "__main__":
    main()
