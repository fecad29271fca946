"""Train the two pair networks of the coherence score on documents of your own, and test them on documents held out.

    python benchmarks/fit_order_model.py --documents news.jsonl --output order_model.safetensors

`news.jsonl` has one JSON string a line: a document of at least five sentences. One in twelve is held out, by its hash. The last
line printed is JSON: the share of held-out documents' shuffles that each part, and their product, puts below the original. The
file in the package was made from 4,235 documents of Reuters-21578, BBC, Brown and WikiText-2, up to 24 sentences each.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

MOST_SENTENCES, HELD_OUT, PERMUTATIONS = 24, 12, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    import numpy as np
    from safetensors.torch import save_file

    from gpt2_quant.records import atomic_path
    from gpt2_quant.text_metrics.embeddings import load_encoder
    from gpt2_quant.text_metrics.order_training import prepare, train
    from gpt2_quant.text_metrics.sentences import split_sentences

    texts = [json.loads(line) for line in args.documents.read_text(encoding="utf-8").splitlines()]
    encoder = load_encoder()
    groups = {False: [], True: []}
    for text in texts:
        sentences = split_sentences(text)[:MOST_SENTENCES]
        if len(sentences) >= 5:
            groups[hashlib.sha256(text.encode()).digest()[0] % HELD_OUT == 0].append(sentences)
    flat = [sentence for sentences in groups[False] for sentence in sentences]
    data = prepare(groups[False], encoder.sentence_vectors(flat))
    networks = {kind: train(data, kind) for kind in ("continuation", "precedence")}
    state = {
        f"{kind}.{name}": value.half().contiguous() for kind, net in networks.items() for name, value in net.state_dict().items()
    }
    with atomic_path(args.output) as temporary:
        save_file(state, temporary, metadata={"made_by": "benchmarks/fit_order_model.py"})

    draw = np.random.default_rng(0)
    wins = [shuffle_wins(sentences, encoder.sentence_vectors(sentences), networks, draw) for sentences in groups[True]]
    shares = dict(zip(("continuity", "precedence", "product"), np.mean(wins, axis=0).round(4).tolist(), strict=True))
    print(json.dumps({"documents": len(groups[False]), "held_out": len(wins), "permutations": PERMUTATIONS, **shares}))


def shuffle_wins(sentences, vectors, networks, draw) -> list[float]:
    """Share of permutations below the original by continuity, by precedence and by their product."""
    import numpy as np

    from gpt2_quant.text_metrics.order_model import judge

    def parts(order):
        continuation, precedence = judge(
            [sentences[i] for i in order], vectors[order], (networks["continuation"], networks["precedence"])
        )
        c, p = continuation.mean(), precedence[np.triu_indices(len(order), 1)].mean()
        return np.array([c, p, c * p])

    original = parts(np.arange(len(sentences)))
    shuffled = np.array([parts(draw.permutation(len(sentences))) for _ in range(PERMUTATIONS)])
    return (original > shuffled).mean(axis=0).tolist()


if __name__ == "__main__":
    main()
