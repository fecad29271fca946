"""Quantization by hand: the arithmetic, the layers, the kernels and the transformers plug-in."""

# Scheme's name in config.json -> "module:object". Filled by models/variants.py.
SCHEMES: dict[str, str] = {}
