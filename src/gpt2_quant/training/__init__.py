"""The loop, the plain step, checkpoints, and the run of script 1."""
