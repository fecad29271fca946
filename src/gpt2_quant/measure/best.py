"""Best mode, as far as it can be had: prepared within a time limit, checked against eager,
explained where it is missing.

`quantization.engine.best_mode` compiles, captures and fuses. That may take long, fail, or change
the result; none of it may cost the eager figures. So each variant's function is warmed up shape by
shape while time is left, its logits are compared with the eager ones, and whatever is given up
leaves a sentence in the variant's record.
"""

import time
from collections.abc import Callable

from ..models.variants import VARIANTS
from . import footprint
from .session import Session, eager

LOGIT_TOLERANCE = 0.05  # of the largest logit: what best mode may differ from eager before it is not the same model


def prepare_best(session: Session) -> dict[tuple[int, int], dict[str, Callable]]:
    """shape -> key -> best-mode function, warmed up and checked against eager, as far as the time
    allowed goes.

    All variants are prepared for the first shape before any is for the second, and W8A8 before the
    others, since the best mode is what it is made for: what time there is goes where it matters
    most. On CUDA the memory that a variant's first capture keeps joins its figures.
    """
    clock = _Clock(session.plan.best_seconds, session.plan.best_seconds_each)
    functions = {
        key: eager(model) for key, model in session.models.items() if VARIANTS[key].no_best_mode
    }
    for key in functions:
        session.note(key, VARIANTS[key].no_best_mode)
    given_up: set[str] = set()
    ready: dict[tuple[int, int], dict[str, Callable]] = {}
    for shape in session.plan.best_shapes:
        ids, mask = session.batch(shape)
        ready[shape] = {}
        for key, model in sorted(
            session.models.items(), key=lambda item: not VARIANTS[item[0]].computes_on_codes
        ):
            if key in given_up:
                continue
            at = f"at {shape[0]} x {shape[1]}"
            if not VARIANTS[key].no_best_mode and clock.is_over(key):
                session.note(
                    key,
                    f"best mode: left out {at}, since compiling took more than the time allowed",
                )
                continue
            try:
                clock.start()
                before = footprint.kept_bytes(session.device) if key not in functions else 0
                if first := key not in functions:
                    from ..inference.engine import best_mode

                    functions[key] = _without_mask(best_mode(model, session.device))
                functions[key](ids, mask)
                if first and session.device == "cuda":
                    session.found[key]["best_memory"] = {
                        "best_added_bytes": footprint.kept_bytes("cuda") - before
                    }
                _check_same(functions[key](ids, mask).float(), eager(model)(ids, mask).float())
                ready[shape][key] = functions[key]
                clock.stop(key)
            except (
                Exception
            ) as fault:  # whatever a compiler may raise: the eager figures stand without it
                session.note(key, f"best mode: given up {at}, {_sentence(fault)}")
                given_up.add(key)
    return ready


def _without_mask(function: Callable) -> Callable:
    """`function` for batches padded on the right, as all here are: causal attention never looks
    there, so no mask is needed.

    transformers is given the mask all the same, since it complains, and asks the device, when
    padding comes without one.
    """
    return lambda ids, mask: function(ids, None)


class _Clock:
    """The time that preparing has taken, of each variant and in all."""

    def __init__(self, seconds: float, seconds_each: float):
        self.seconds, self.seconds_each = seconds, seconds_each
        self.spent: dict[str, float] = {}

    def is_over(self, key: str) -> bool:
        return (
            sum(self.spent.values()) > self.seconds or self.spent.get(key, 0.0) > self.seconds_each
        )

    def start(self) -> None:
        self.began = time.monotonic()

    def stop(self, key: str) -> None:
        self.spent[key] = self.spent.get(key, 0.0) + time.monotonic() - self.began


def _check_same(best, reference) -> None:
    """Raise ValueError where best mode's logits are not eager's within rounding."""
    difference, largest = float((best - reference).abs().max()), float(reference.abs().max())
    if not difference <= LOGIT_TOLERANCE * largest:
        raise ValueError(
            f"its logits differ from eager's by {difference:.3g} where the largest is {largest:.3g}"
        )


def _sentence(fault: Exception) -> str:
    return f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"


def ready_for_texts(
    session: Session, functions: dict[str, Callable], batches: list[dict]
) -> dict[str, Callable]:
    """Those of `functions` that have served one batch of every shape in `batches` within half the
    time of `prepare_best`.
    """
    clock = _Clock(session.plan.best_seconds / 2, session.plan.best_seconds_each / 2)
    shapes = {tuple(batch["input_ids"].shape): batch for batch in batches}
    served = dict(functions)
    for batch in shapes.values():
        for key in list(served):
            try:
                if clock.is_over(key):
                    raise TimeoutError("compiling for every length took more than the time allowed")
                clock.start()
                served[key](
                    batch["input_ids"].to(session.device),
                    batch["attention_mask"].to(session.device),
                )
                clock.stop(key)
            except Exception as fault:
                session.note(key, f"throughput in best mode: none, {_sentence(fault)}")
                del served[key]
    return served
