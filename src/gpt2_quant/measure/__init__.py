"""Everything that yields a figure: scores, paired tests, latency, memory, energy, quantization
error.
"""
