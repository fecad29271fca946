"""Best mode, prepared within a time limit and checked against FP32 and eager.

Best mode rounds in other places than eager, so the two differ. If it is right, its error (the root
mean square of its logits' distance to FP32's) is another draw of eager's. Over the 16 texts of a
check, four logits counted as two, such draws differ 1.75-fold once in a thousand times (root of
F(32, 32)). Twice eager's error on top of it makes a factor of sqrt(1 + 2^2) = 2.24: refused.

What is given up leaves a sentence in the variant's record, beside its eager figures.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..inference import engine
from ..models.variants import BASELINE, VARIANTS
from . import predictions
from .footprint import kept_bytes
from .session import Function, Functions, Session, Shape, eager

LARGEST_RATIO = 1.75  # of best mode's error to eager's
# Of the largest logit. A sum of k products in float32 errs by about sqrt(k) * 2^-24 (Higham & Mary,
# 2019), 3e-6 at GPT-2's widths; 48 in a row by 2e-5, to which the norms add.
ROUNDING = 1e-4
CHECKED_TEXTS = 16  # at least, at each shape


class Budget:
    """The seconds that preparing may take, in all and for each variant."""

    def __init__(self, seconds: float, seconds_each: float):
        self.seconds, self.seconds_each = seconds, seconds_each
        self.spent: dict[str, float] = defaultdict(float)

    def run(self, key: str, prepare: Callable[[], object]) -> None:
        """Raises TimeoutError where earlier calls have used up the time."""
        if self.spent[key] > self.seconds_each or sum(self.spent.values()) > self.seconds:
            raise TimeoutError("compiling took more than the time allowed")
        start = time.monotonic()
        prepare()
        self.spent[key] += time.monotonic() - start


def prepare_best(session: Session) -> dict[Shape, Functions]:
    """The best-mode functions that were ready in time, and as good as eager, at each shape.

    All variants are prepared for the first shape before any is for the second.
    """
    budget = Budget(session.plan.best_seconds, session.plan.best_seconds_each)
    keys = [key for key in session.models if not VARIANTS[key].no_best_mode]
    for key in session.models:
        if reason := VARIANTS[key].no_best_mode:
            session.note(key, reason)
    keys.sort(key=lambda key: not VARIANTS[key].computes_on_codes)
    ready: dict[Shape, Functions] = {shape: {} for shape in session.plan.best_shapes}
    made: Functions = {}

    def prepare(key: str, shape: Shape, exact: Tensor) -> None:
        batch_size, seq_len = shape
        if key not in made:
            made[key] = _make(session, key, session.batch(shape))
        batch = session.batch((max(batch_size, CHECKED_TEXTS), seq_len))
        best = _in_parts(made[key], batch, batch_size)  # compiles or captures
        check(best, _in_parts(eager(session.models[key]), batch, CHECKED_TEXTS), exact)

    for shape in ready:
        at = f"at {shape[0]} x {shape[1]}"
        batch = session.batch((max(shape[0], CHECKED_TEXTS), shape[1]))
        exact = _in_parts(eager(session.models[BASELINE.key]), batch, CHECKED_TEXTS)
        for key in list(keys):
            try:
                budget.run(key, partial(prepare, key, shape, exact))
                ready[shape][key] = made[key]
            except TimeoutError as fault:
                session.note(key, f"best mode: left out {at}, since {fault}")
            except Exception as fault:  # whatever a compiler may raise
                session.note(key, f"best mode: given up {at}, {_sentence(fault)}")
                keys.remove(key)
    return ready


def _in_parts(function: Function, batch: tuple[Tensor, Tensor], batch_size: int) -> Tensor:
    ids, mask = (tensor.split(batch_size) for tensor in batch)
    return torch.cat([function(*part).float() for part in zip(ids, mask, strict=True)])


def _make(session: Session, key: str, batch: tuple[Tensor, Tensor]) -> Function:
    """Best mode, called once; the CUDA memory that it keeps joins the variant's figures."""
    before = kept_bytes(session.device)
    best = engine.best_mode(session.models[key], session.device)

    def function(ids: Tensor, mask: Tensor) -> Tensor:
        return best(ids, None)  # causal: never reads padding on the right

    function(*batch)
    if session.device == "cuda":
        session.found[key].memory["best_added_bytes"] = kept_bytes("cuda") - before
    return function


def check(best, reference, exact) -> None:
    """Logits [n, classes] of best mode, of eager and of FP32, all tensors or all arrays. Raises
    ValueError where best mode's error is not of the size of eager's.
    """
    error, own = (float(((x - exact) ** 2).mean()) ** 0.5 for x in (best, reference))
    allowed = LARGEST_RATIO * own + ROUNDING * float(abs(exact).max())
    if not error <= allowed:
        gap = f"{error:.3g} from FP32's (RMS), eager's {own:.3g}"
        raise ValueError(f"its logits are {gap}, where at most {allowed:.3g} is allowed")


def _sentence(fault: Exception) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"


def check_on_test(session: Session, ready: dict[Shape, Functions], eager_logits: dict) -> None:
    """Every test text through best mode, beside `eager_logits` (key -> [n, classes]): what is timed
    is what is scored. One that fails leaves `ready`.
    """
    functions = {key: made for at_shape in ready.values() for key, made in at_shape.items()}
    labels, size = session.tokens.labels, session.plan.texts_a_batch
    for key, function in functions.items():
        reference = eager_logits[key]
        words = f"{VARIANTS[key].label} on test, best mode"
        try:
            best = predictions.run_over(
                function, session.device, session.tokens, size, session.pad_id, words
            )
            check(best, reference, eager_logits[BASELINE.key])
        except Exception as fault:
            session.note(key, f"best mode: given up on the test texts, {_sentence(fault)}")
            for at_shape in ready.values():
                at_shape.pop(key, None)
            continue
        same = best.argmax(axis=1) == reference.argmax(axis=1)
        session.found[key].best_check = {
            "accuracy": float((best.argmax(axis=1) == labels).mean()),
            "agreement": float(same.mean()),
            "flips": int((~same).sum()),
            "largest_logit_difference": float(np.abs(best - reference).max()),
            "rms_logit_difference": float(((best - reference) ** 2).mean() ** 0.5),
            "n": len(labels),
            "session": session.id,
        }
