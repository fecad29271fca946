"""Quantization by hand: the arithmetic, the layers, the kernels and the transformers plug-in."""

# Scheme's name in config.json -> "module:object". models/variants.py fills it, this room reads it.
SCHEMES: dict[str, str] = {}
