"""Best mode, prepared within a time limit and checked against FP32 and eager.

Best mode rounds in other places than eager. If it is right, its error (the root mean square of its
logits' distance to FP32's) is another draw of eager's. Over the 16 texts of a check, four logits
counted as two, such draws differ 1.75-fold once in a thousand times (root of F(32, 32)). Twice
eager's error on top of it makes a factor of sqrt(1 + 2^2) = 2.24: refused, and noted in the record.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..inference import engine
from ..models.variants import BASELINE, VARIANTS
from ..records import write_text
from . import predictions
from .footprint import kept_bytes
from .session import Function, Functions, Session, Shape, eager

LARGEST_RATIO = 1.75  # of best mode's error to eager's
# Of the largest logit. A sum of k products in float32 errs by about sqrt(k) * 2^-24 (Higham & Mary,
# 2019), 3e-6 at GPT-2's widths; 48 in a row by 2e-5, to which the norms add.
ROUNDING = 1e-4
CHECKED_TEXTS = 16  # at least, at each shape


def best_functions(session: Session, results_dir: Path) -> dict[Shape, Functions]:
    """At each shape, what `prepare_best` made and `check_on_test` left.

    Whoever compiles may take the process down. A marker is left then: the next run does without
    best mode, so that it has eager times at least, and removes the marker.
    """
    marker, missing = results_dir / "cache" / "best_mode_begun", ""
    if BASELINE.key not in session.models:  # script 2, on someone's checkpoint
        missing = "without FP32's results to check it by"
    elif marker.exists():
        missing = "since the last run was killed while preparing it; --overwrite tries again"
    ready: dict[Shape, Functions] = {}
    try:
        if missing:
            for key in session.models:
                session.note(key, f"best mode: not measured, {missing}")
        else:
            write_text(marker, session.id)
            ready = prepare_best(session)
            logits = {key: predictions.load_logits(results_dir, key) for key in session.models}
            check_on_test(session, ready, logits)
    finally:
        marker.unlink(missing_ok=True)
    return ready


def prepare_best(session: Session) -> dict[Shape, Functions]:
    """The best-mode functions that were ready in time, and as good as eager, at each shape.

    All variants are prepared for the first shape before any is for the second.
    """
    plan, models = session.plan, session.models
    for key in models:
        if reason := VARIANTS[key].no_best_mode:
            session.note(key, reason)
    keys = [key for key in models if not VARIANTS[key].no_best_mode]
    keys.sort(key=lambda key: not VARIANTS[key].computes_on_codes)
    ready: dict[Shape, Functions] = {shape: {} for shape in plan.best_shapes}
    made: Functions = {}
    spent = dict.fromkeys(keys, 0.0)  # seconds
    for shape, functions in ready.items():
        at = f"at {shape[0]} x {shape[1]}"
        batch = session.batch((max(shape[0], CHECKED_TEXTS), shape[1]))
        exact = _in_parts(eager(models[BASELINE.key]), batch, CHECKED_TEXTS)
        for key in list(keys):
            if spent[key] > plan.best_seconds_each or sum(spent.values()) > plan.best_seconds:
                late = "compiling took more than the time allowed"
                session.note(key, f"best mode: left out {at}, since {late}")
                continue
            start = time.monotonic()
            try:
                if key not in made:
                    made[key] = _make(session, key, session.batch(shape))
                best = _in_parts(made[key], batch, shape[0])  # compiles or captures
                check(best, _in_parts(eager(models[key]), batch, CHECKED_TEXTS), exact)
                functions[key] = made[key]
            except Exception as fault:  # whatever a compiler may raise
                session.note(key, f"best mode: given up {at}, {_sentence(fault)}")
                keys.remove(key)
            spent[key] += time.monotonic() - start
    return ready


def _in_parts(function: Function, batch: tuple[Tensor, Tensor], batch_size: int) -> Tensor:
    ids, mask = (tensor.split(batch_size) for tensor in batch)
    return torch.cat([function(*part).float() for part in zip(ids, mask, strict=True)])


def _make(session: Session, key: str, batch: tuple[Tensor, Tensor]) -> Function:
    """Best mode, called once; the CUDA memory that it keeps joins the variant's."""
    before = kept_bytes(session.device)
    best = engine.best_mode(session.models[key], session.device)

    def function(ids: Tensor, mask: Tensor) -> Tensor:
        return best(ids, None)  # causal: never reads padding on the right

    function(*batch)
    if session.device == "cuda":
        session.found[key].memory["best_added_bytes"] = kept_bytes("cuda") - before
    return function


def check(best, reference, exact) -> None:
    """Logits [n, classes] of best mode, eager and FP32. Raises ValueError where best mode's error
    is not of the size of eager's.
    """
    error, own = (float(((x - exact) ** 2).mean()) ** 0.5 for x in (best, reference))
    allowed = LARGEST_RATIO * own + ROUNDING * float(abs(exact).max())
    if not error <= allowed:
        gap = f"{error:.3g} from FP32's (RMS), eager's {own:.3g}"
        raise ValueError(f"its logits are {gap}, where at most {allowed:.3g} is allowed")


def _sentence(fault: Exception) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"


def check_on_test(session: Session, ready: dict[Shape, Functions], eager_logits: dict) -> None:
    """What is timed is what is scored: every test text through best mode, beside `eager_logits`
    (key -> [n, classes]). One that fails leaves `ready`.
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
        answers, gap = best.argmax(axis=1), best - reference
        same = answers == reference.argmax(axis=1)
        session.found[key].best_check = {
            "accuracy": (answers == labels).mean(), "agreement": same.mean(),
            "flips": (~same).sum(), "largest_logit_difference": np.abs(gap).max(),
            "rms_logit_difference": np.square(gap).mean() ** 0.5,
            "n": len(labels), "session": session.id,
        }  # fmt: skip
