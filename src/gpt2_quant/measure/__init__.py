"""Scores, paired tests, latency, memory, energy and quantization error."""
