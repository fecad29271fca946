"""Best mode, prepared within a time limit and checked against eager.

What is given up leaves a sentence in the variant's record, beside its eager figures.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..inference import engine
from ..models.variants import VARIANTS
from .footprint import kept_bytes
from .session import Function, Functions, Session, Shape, eager
from .timing import Batches

# Of the largest logit: by how much best mode may differ from eager.
LOGIT_TOLERANCE = 0.05


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
    """The best-mode functions that were ready in time, and equal to eager, at each shape.

    All variants are prepared for the first shape before any is for the second. One without a best
    mode is eager once more.
    """
    budget = Budget(session.plan.best_seconds, session.plan.best_seconds_each)
    ready: dict[Shape, Functions] = {shape: {} for shape in session.plan.best_shapes}
    for key, model in session.models.items():
        if reason := VARIANTS[key].no_best_mode:
            session.note(key, reason)
            for functions in ready.values():
                functions[key] = eager(model)
    keys = [key for key in session.models if not VARIANTS[key].no_best_mode]
    keys.sort(key=lambda key: not VARIANTS[key].computes_on_codes)
    made: Functions = {}

    def prepare(key: str, batch: tuple[Tensor, Tensor]) -> None:
        if key not in made:
            made[key] = _make(session, key, batch)
        made[key](*batch)  # compiles or captures
        _check_same(made[key](*batch), eager(session.models[key])(*batch))

    for shape in ready:
        batch, at = session.batch(shape), f"at {shape[0]} x {shape[1]}"
        for key in list(keys):
            try:
                budget.run(key, partial(prepare, key, batch))
                ready[shape][key] = made[key]
            except TimeoutError as fault:
                session.note(key, f"best mode: left out {at}, since {fault}")
            except Exception as fault:  # whatever a compiler may raise
                session.note(key, f"best mode: given up {at}, {_sentence(fault)}")
                keys.remove(key)
    return ready


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


def _check_same(best: Tensor, reference: Tensor) -> None:
    difference, largest = float((best - reference).abs().max()), float(reference.abs().max())
    if not difference <= LOGIT_TOLERANCE * largest:
        gap = f"{difference:.3g} where the largest is {largest:.3g}"
        raise ValueError(f"its logits differ from eager's by {gap}")


def _sentence(fault: Exception) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"


def ready_for_texts(session: Session, functions: Functions, batches: Batches) -> Functions:
    """Those of `functions` that served every shape in `batches`, in half `prepare_best`'s time."""
    budget = Budget(session.plan.best_seconds / 2, session.plan.best_seconds_each / 2)
    shapes = {batch["input_ids"].shape: batch for batch in batches}
    served = dict(functions)
    for batch in shapes.values():
        inputs = [batch[name].to(session.device) for name in ("input_ids", "attention_mask")]
        for key, function in list(served.items()):
            try:
                budget.run(key, partial(function, *inputs))
            except Exception as fault:
                session.note(key, f"throughput in best mode: none, {_sentence(fault)}")
                del served[key]
    return served
