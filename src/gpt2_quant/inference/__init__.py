"""The fastest way to run each variant: fused chain, CUDA graphs, CPU."""
