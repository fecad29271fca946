"""Triton's interpreter rounds to e4m3 without carrying into the exponent (127 becomes 64 where GPUs
and torch give 128), so in it ml_dtypes rounds.
"""

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def repair() -> None:
    theirs = interpreter._convert_float

    def convert(values, source, target, rounding):
        if target == tl.float8e4nv and source == tl.float32:
            floats = np.ascontiguousarray(values).view(np.float32)
            return floats.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        return theirs(values, source, target, rounding)

    interpreter._convert_float = convert
