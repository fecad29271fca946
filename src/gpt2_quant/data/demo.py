"""The demo's raw material, made on the spot: a corpus, a tokenizer trained on it, a miniature GPT-2
pretrained on it.

The demo runs the real scripts where there is no hub and no GPU, so it needs what they would
download: AG News (here the grammar of demo_corpus.py, in AG News' own CSV form), GPT-2's tokenizer
(here a byte-level BPE of the same kind, 2,048 tokens instead of 50,257) and GPT-2's weights (here 4
layers of width 128, about 1.1 million parameters, trained as a language model on items that are in
neither split, so that perplexity on the test texts means something).

Each folder is written whole or not at all and carries a stamp of what it was made from. A run that
was killed, another seed or a changed grammar makes it anew; otherwise it stays.
"""

import csv
import hashlib
import json
import math
from pathlib import Path

from ..cli import seed_everything
from ..records import atomic_path, write_json
from . import demo_corpus
from .demo_corpus import generate_corpus
from .labels import LABELS

TRAIN_ROWS, TEST_ROWS, PRETRAIN_ROWS = 5_000, 1_000, 8_000
VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 2_048, 256, 128, 4, 4
STEPS, BATCH, LEARNING_RATE, WARMUP = 400, 4, 2e-3, 40
END_OF_TEXT = "<|endoftext|>"
STAMP = "demo.json"

__all__ = ["generate_corpus", "prepare", "train_tokenizer"]


def train_tokenizer(texts: list[str], vocab_size: int):
    """Train a byte-level BPE on `texts`, as GPT-2's was (Radford et al., 2019, section 2.2).

    Byte-level: the alphabet is the 256 bytes, so any text can be written and there is no unknown
    token. Returns a fast GPT-2 tokenizer of at most `vocab_size` tokens whose end-of-text token
    also pads, on the right.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2TokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts,
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    state = json.loads(bpe.to_str())["model"]
    merges = [
        tuple(pair) if isinstance(pair, list) else tuple(pair.split(" "))
        for pair in state["merges"]
    ]
    return GPT2TokenizerFast(
        vocab=state["vocab"],
        merges=merges,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="right",
    )


def prepare(models_dir: Path, results_dir: Path, seed: int) -> tuple[Path, Path]:
    """Make `models_dir/dataset` and `models_dir/base_gpt2` unless they are there already; return
    (model, dataset).

    The base's training curve goes to `results_dir/demo_pretraining.json`. Takes about a minute on
    two CPU cores.
    """
    base, dataset = Path(models_dir) / "base_gpt2", Path(models_dir) / "dataset"
    stamp = {"seed": seed, "code_sha256": _code_sha256()}
    if not _carries(dataset, stamp):
        _write_dataset(dataset, seed, stamp)
    if not _carries(base, stamp):
        curve = _pretrain(base, seed, stamp)
        write_json(Path(results_dir) / "demo_pretraining.json", curve)
    return base, dataset


def _code_sha256() -> str:
    """A hash of the two files that decide what is made."""
    return hashlib.sha256(
        Path(demo_corpus.__file__).read_bytes() + Path(__file__).read_bytes()
    ).hexdigest()


def _carries(folder: Path, stamp: dict) -> bool:
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8")) == stamp
    except (OSError, ValueError):
        return False


def _write_dataset(folder: Path, seed: int, stamp: dict) -> None:
    """Train and test as AG News has them: class 1–4, title, description, all quoted, no header."""
    titles, descriptions, labels = generate_corpus(TRAIN_ROWS + TEST_ROWS, seed)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, rows in (("train", slice(0, TRAIN_ROWS)), ("test", slice(TRAIN_ROWS, None))):
            with open(temporary / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
                classes = [label + 1 for label in labels[rows]]
                csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
                    zip(classes, titles[rows], descriptions[rows], strict=True)
                )
        (temporary / "classes.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
        write_json(temporary / STAMP, stamp)


def _pretrain(folder: Path, seed: int, stamp: dict) -> dict:
    """Train tokenizer and model on items of their own and save both to `folder`; returns the loss
    of every step.
    """
    import torch
    from torch.nn.utils import clip_grad_norm_
    from tqdm import tqdm
    from transformers import GPT2Config, GPT2LMHeadModel

    titles, descriptions, _ = generate_corpus(PRETRAIN_ROWS, seed + 1)
    texts = [
        f"{title} {description}" for title, description in zip(titles, descriptions, strict=True)
    ]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    end = tokenizer.eos_token_id
    # One long stream, an end-of-text token before each item, cut into full contexts: no padding,
    # every position teaches.
    stream = torch.tensor([token for ids in tokenizer(texts)["input_ids"] for token in (end, *ids)])
    contexts = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)

    seed_everything(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        bos_token_id=end, eos_token_id=end, pad_token_id=end, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01
    )
    order = torch.cat(
        [torch.randperm(len(contexts)) for _ in range(math.ceil(STEPS * BATCH / len(contexts)))]
    )
    losses = []
    progress = tqdm(range(STEPS), desc="Pretraining the miniature GPT-2", unit="step")
    for step in progress:
        rate = LEARNING_RATE * min(
            (step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / STEPS)
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = contexts[order[step * BATCH : (step + 1) * BATCH]]
        loss = model(batch, attention_mask=torch.ones_like(batch), labels=batch).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / STAMP, stamp)
    return {
        "steps": STEPS,
        "tokens_per_step": BATCH * CONTEXT,
        "parameters": model.num_parameters(),
        "loss": losses,
    }
