"""What every metric returns.

NaN means *undefined* (the BLEU of an empty candidate, the coherence of one sentence), where 0 would
be a verdict. Corpus values are over the defined texts.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from ..cache import Cache, content_key
from ..errors import UserError

References = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Scored:
    """One metric over n texts: `values` float64 [n], `parts` more of that shape (precision, recall
    …); `signature` the settings that reproduce them; `pooled` gives the corpus value where it is
    not the mean.
    """

    name: str
    values: np.ndarray
    signature: str
    pooled: Callable[[], float] | None = None
    parts: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def corpus(self) -> float:
        """The value of the corpus; NaN when no text is defined."""
        if not self.n:
            return float("nan")
        return self.pooled() if self.pooled else float(np.nanmean(self.values))

    @property
    def n(self) -> int:
        """How many texts are defined."""
        return int(np.isfinite(self.values).sum())


def cached_rows(
    cache: Cache | None,
    name: str,
    signature: str,
    items: Sequence[tuple[str, ...]],
    compute: Callable[[list[tuple[str, ...]]], np.ndarray | list],
    width: int = 1,
) -> np.ndarray:
    """Rows float [len(items), width]; `compute` gets the items (tuples of texts) that the cache's
    table `name` lacks under `signature`, in batches.
    """
    with tqdm(total=len(items), desc=name, disable=len(items) < 200, leave=False) as bar:

        def compute_missing(positions: list[int]) -> np.ndarray:
            rows = np.asarray(compute([items[i] for i in positions]), dtype=float)
            bar.update(len(positions))
            return rows

        keys = [content_key(signature, *item) for item in items]
        return (cache or Cache(None)).rows(name, keys, compute_missing).reshape(-1, width)


def has_words(text: str) -> bool:
    return bool(text.strip())


def pair_items(
    candidates: Sequence[str], references: References, keep: Callable = has_words
) -> list[tuple[str, ...]]:
    """(candidate, those of its references that `keep` accepts) of each text. Raises UserError
    unless each candidate has a list of references that is not empty.
    """
    if len(candidates) != len(references):
        fault = f"{len(candidates)} candidates but {len(references)} lists of references"
        raise UserError(f"{fault}: give one list per candidate")
    if any(isinstance(group, str) or not group for group in references):
        raise UserError("each candidate needs a list of at least one reference")
    pairs = zip(candidates, references, strict=True)
    return [(candidate, *filter(keep, group)) for candidate, group in pairs]


def version(package: str) -> str:
    return f"{package}-{importlib.metadata.version(package)}"
