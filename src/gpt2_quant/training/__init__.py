"""The loop, the plain step, checkpoints, and the run of script 1."""

import os

from ..errors import UserError

# Under accelerate launch, which sets RANK, one process speaks, saves and publishes.
MAIN_PROCESS = os.environ.get("RANK", "0") == "0"
if not MAIN_PROCESS:
    os.environ["TQDM_DISABLE"] = "1"  # which tqdm reads when it is imported


def learning_rate(text: str) -> float:
    """argparse type. Raises UserError for a rate not between 0 and 1."""
    rate = float(text)
    if not 0 < rate < 1:
        raise UserError(f"--learning-rate {rate} is not between 0 and 1: give one like 2e-5")
    return rate
