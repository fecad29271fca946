"""What every metric returns: a value a text, a value for the corpus, and the signature without
which neither means anything.

A value of NaN means *undefined*: the question has no answer for this text (the BLEU of an empty
candidate, the coherence of one sentence). That is a statement, where a 0 would be a verdict. Corpus
values are over the defined texts, and `n` says how many.
"""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import UserError


@dataclass(frozen=True)
class Scored:
    """One metric over n texts. `values` float64 [n], NaN where undefined; `parts` more of the same
    shape (precision, recall …).

    `additive` holds what must be summed over texts for the corpus value (a sum and a count, n-gram
    counts …) and `finish` turns that sum into the value, so that a corpus read in pieces gets the
    same value as one read whole. None: no text is defined.
    """

    name: str
    values: np.ndarray
    signature: str
    additive: np.ndarray | None
    finish: Callable[[np.ndarray], float]
    higher_is_better: bool = True
    parts: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def mean(cls, name: str, values: np.ndarray, signature: str, **fields) -> "Scored":
        """A metric whose corpus value is the mean over the defined texts."""
        defined = values[np.isfinite(values)]
        additive = np.array([defined.sum(), len(defined)]) if len(defined) else None
        return cls(
            name, values, signature, additive, lambda sums: float(sums[0] / sums[1]), **fields
        )

    @property
    def corpus(self) -> float:
        """The value of the corpus; NaN when no text is defined."""
        return float("nan") if self.additive is None else self.finish(self.additive)

    @property
    def n(self) -> int:
        """How many texts have a defined value."""
        return int(np.isfinite(self.values).sum())


def check_pairs(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise UserError unless there is one list of references, not empty, for each candidate."""
    if len(candidates) != len(references):
        raise UserError(
            f"{len(candidates)} candidates but {len(references)} lists of references: give one list a candidate"
        )
    if any(isinstance(group, str) or not group for group in references):
        raise UserError("each candidate needs a list of at least one reference")


def has_words(text: str) -> bool:
    """Whether `text` holds anything but white space."""
    return bool(text.strip())


def version(package: str) -> str:
    """`package-1.2.3`, as signatures write it."""
    return f"{package}-{importlib.metadata.version(package)}"
