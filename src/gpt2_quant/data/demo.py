"""The demo's corpus, tokenizer and miniature GPT-2, made locally: no hub, no GPU.

AG News is replaced by the grammar of demo_corpus.py in the same CSV form; GPT-2's tokenizer (50,257
tokens) by a byte-level BPE of 2,048; its weights by 4 layers of width 128, 1.1 million parameters,
trained as a language model on items in neither split, so that test perplexity means something.

Another seed or grammar makes a folder anew.
"""

import csv
import hashlib
import json
from itertools import chain
from pathlib import Path

from ..cli import GENERATED, Settings, generated, seed_everything
from ..records import atomic_path, write_json
from . import demo_corpus
from .demo_corpus import generate_corpus
from .labels import LABELS

TRAIN_ROWS, TEST_ROWS, PRETRAIN_ROWS = 5_000, 1_000, 8_000
VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 2_048, 256, 128, 4, 4
STEPS, BATCH, LEARNING_RATE, WARMUP = 200, 4, 2e-3, 20
END_OF_TEXT = "<|endoftext|>"
STAMP = "demo.json"


def prepare(settings: Settings) -> None:
    """Half a minute on two CPU cores; nothing where other data and model are asked for, or another
    preset.
    """
    if settings.preset != "demo" or not any(generated(vars(settings)).values()):
        return
    base, dataset = (settings.models_dir / folder for folder in GENERATED.values())
    sources = (demo_corpus.GRAMMAR, Path(demo_corpus.__file__), Path(__file__))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    stamp = {"seed": settings.seed, "code_sha256": code}
    if not _carries(dataset, stamp):
        _write_dataset(dataset, settings.seed, stamp)
    if not _carries(base, stamp):
        curve = _pretrain(base, settings.seed, stamp)
        write_json(settings.results_dir / "demo_pretraining.json", curve)


def _carries(folder: Path, stamp: dict) -> bool:
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8")) == stamp
    except (OSError, ValueError):
        return False


def _write_dataset(folder: Path, seed: int, stamp: dict) -> None:
    rows = list(zip(*generate_corpus(TRAIN_ROWS + TEST_ROWS, seed), strict=True))
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_ag_news(temporary / "train.csv", rows[:TRAIN_ROWS])
        write_ag_news(temporary / "test.csv", rows[TRAIN_ROWS:])
        (temporary / "classes.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
        write_json(temporary / STAMP, stamp)


def write_ag_news(path: Path, rows: list[tuple[str, str, int]]) -> None:
    """Write titles, descriptions and labels (0–3) in the form of `ag_news.read_csv`."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows((label + 1, title, description) for title, description, label in rows)


def train_tokenizer(texts: list[str], vocab_size: int):
    """A GPT-2 tokenizer of at most `vocab_size` tokens, padding on the right.

    Byte-level BPE (Radford et al., 2019, section 2.2): its alphabet is the 256 bytes, so no token
    is unknown.
    """
    from transformers import GPT2Tokenizer

    empty = GPT2Tokenizer(pad_token=END_OF_TEXT, padding_side="right")
    options = {"min_frequency": 2, "show_progress": False}
    return empty.train_new_from_iterator(texts, vocab_size, **options)


def _pretrain(folder: Path, seed: int, stamp: dict) -> dict:
    import torch
    from torch.utils.data import DataLoader, RandomSampler, TensorDataset
    from tqdm import tqdm
    from transformers import GPT2Config, GPT2LMHeadModel, get_cosine_schedule_with_warmup
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of writing one file
    titles, descriptions, _ = generate_corpus(PRETRAIN_ROWS, seed + 1)
    texts = [" ".join(item) for item in zip(titles, descriptions, strict=True)]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    # One stream, end-of-text before each item, cut into full contexts.
    items = tokenizer([END_OF_TEXT + text for text in texts])["input_ids"]
    stream = torch.tensor(list(chain.from_iterable(items)))
    contexts = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)

    seed_everything(seed)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        bos_token_id=end, eos_token_id=end, pad_token_id=end,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    data = TensorDataset(contexts)
    batches = DataLoader(data, BATCH, sampler=RandomSampler(data, num_samples=STEPS * BATCH))
    progress = tqdm(batches, "pretraining the miniature GPT-2", unit="update")
    losses = []
    for (batch,) in progress:
        loss = model(batch, attention_mask=torch.ones_like(batch), labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
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
