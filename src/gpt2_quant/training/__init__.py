"""The loop, the plain step, checkpoints, and the run of script 1."""

import os

# Under accelerate launch, which sets RANK, one process speaks, saves and publishes.
MAIN_PROCESS = os.environ.get("RANK", "0") == "0"
if not MAIN_PROCESS:
    os.environ["TQDM_DISABLE"] = "1"  # which tqdm reads when it is imported
