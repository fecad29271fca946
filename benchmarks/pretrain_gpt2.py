"""A GPT-2 pretrained from random weights in minutes, for machines that cannot reach the hub.

    python benchmarks/pretrain_gpt2.py --data tokens.npy --tokenizer FOLDER --output models/gpt2
    python benchmarks/pretrain_gpt2.py --data texts/ --tokenizer FOLDER --output models/gpt2

--data is a .npy of uint16 token ids in one row, or a folder whose .txt files are joined with
<|endoftext|> between them. The last percent is held out and scored at the end. The learning rate
falls with the time used, not with updates counted, so that --minutes is kept on any machine.

The reference run's stand-in for openai-community/gpt2 was made so: 9.2 million tokens of news, 108
seconds on an H200, held-out perplexity 42. It is nowhere near the real one. Time decides how many
updates fit, so another machine makes another model: the sha256 printed says which it is.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from gpt2_quant.data.tokens import load_tokenizer
from gpt2_quant.errors import UserError, run
from gpt2_quant.records import atomic_path, file_sha256

WARMUP_UPDATES, FINAL_FRACTION = 200, 0.05
HELD_OUT_BLOCKS = 40


def main() -> None:
    args = flags()
    from transformers import GPT2Config, GPT2LMHeadModel  # `run` has silenced what it loads

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(args.tokenizer)
    tokens = read_tokens(args.data, tokenizer).to(device)
    if len(tokens) < 200 * args.block:
        raise UserError(f"--data holds {len(tokens)} tokens: give at least {200 * args.block}")
    held_out = tokens[-max(len(tokens) // 100, args.block) :]
    tokens = tokens[: -len(held_out)]

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    end = tokenizer.eos_token_id
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_layer=args.layers, n_embd=args.width, n_head=args.heads,
            n_positions=1024, bos_token_id=end, eos_token_id=end,
        )
    ).to(device)  # fmt: skip
    updates = train(model, tokens, args)
    perplexity = score(model, held_out, args.block)
    with atomic_path(args.output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    sha256 = file_sha256(args.output / "model.safetensors")
    print(f"{updates} updates, held-out perplexity {perplexity:.1f}")
    print(json.dumps({"updates": updates, "perplexity": perplexity, "sha256": sha256}))


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help=".npy of uint16 tokens, or a folder of .txt files")
    add("--tokenizer", type=Path, required=True, help="folder of GPT-2's tokenizer")
    add("--output", type=Path, required=True, help="folder to write the model to")
    add("--minutes", type=float, default=1.8, help="of training (default: %(default)s)")
    add("--layers", type=int, default=12, help="(default: %(default)s)")
    add("--width", type=int, default=768, help="(default: %(default)s)")
    add("--heads", type=int, default=12, help="(default: %(default)s)")
    add("--batch-size", type=int, default=32, help="blocks per update (default: %(default)s)")
    add("--block", type=int, default=512, help="tokens of a block (default: %(default)s)")
    add("--learning-rate", type=float, default=6e-4, help="at its peak (default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    return parser.parse_args()


def read_tokens(path: Path, tokenizer) -> torch.Tensor:
    """Token ids, int32 [n]. Raises UserError for anything but the two forms."""
    if path.is_dir():
        texts = [file.read_text(encoding="utf-8") for file in sorted(path.rglob("*.txt"))]
        ids = tokenizer(texts)["input_ids"] if texts else []
        return torch.tensor([i for text in ids for i in (tokenizer.eos_token_id, *text)]).int()
    if not path.is_file() or path.suffix != ".npy":
        raise UserError(f"--data {path} is neither a folder nor a .npy file: give one of the two")
    ids = np.load(path, mmap_mode="r", allow_pickle=False)
    if ids.dtype != np.uint16 or ids.ndim != 1 or ids.size and ids.max() >= len(tokenizer):
        need = f"one row of uint16 below {len(tokenizer)}, the tokenizer's size"
        raise UserError(f"--data {path} holds {ids.dtype} of shape {ids.shape}: {need} is needed")
    return torch.from_numpy(ids.astype(np.int32))


def train(model: torch.nn.Module, tokens: torch.Tensor, args: argparse.Namespace) -> int:
    """AdamW on blocks drawn anywhere in `tokens`, until the time is over; returns the updates."""
    device, on_gpu = tokens.device, tokens.device.type == "cuda"
    compiled = torch.compile(model) if on_gpu else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    positions = torch.arange(args.block, device=device)
    model.train()
    updates, begun = 0, time.monotonic()
    while (used := (time.monotonic() - begun) / (60 * args.minutes)) < 1:
        cosine = (1 + math.cos(math.pi * used)) / 2
        share = min(1, (updates + 1) / WARMUP_UPDATES)
        share *= FINAL_FRACTION + (1 - FINAL_FRACTION) * cosine
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * share
        starts = torch.randint(len(tokens) - args.block, (args.batch_size, 1), device=device)
        batch = tokens[starts + positions].long()
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss = compiled(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        updates += 1
        if updates == 1:
            loss.item()
            begun = time.monotonic()  # compiling is not training
        if updates % 50 == 0:  # reading the loss waits for the GPU, so that the clock is its own
            value = loss.item()
            if updates % 500 == 0:
                print(f"{updates} updates, {time.monotonic() - begun:.0f} s, loss {value:.3f}")
    return updates


@torch.inference_mode()
def score(model: torch.nn.Module, held_out: torch.Tensor, block: int) -> float:
    """Perplexity of the first blocks of the held-out tokens."""
    model.eval()
    blocks = held_out[: len(held_out) // block * block].view(-1, block)[:HELD_OUT_BLOCKS].long()
    losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in blocks]
    return math.exp(sum(losses) / len(losses))


if __name__ == "__main__":
    run(main)
