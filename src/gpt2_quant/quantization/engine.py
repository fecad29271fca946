"""The fastest way to run each variant, behind one call: `best_mode(model, device)(input_ids, attention_mask) -> logits`.

variant                     CUDA                                              CPU
int8_scratch_w8a8           fused kernels (fused.py) in CUDA graphs           fused blocks under torch.compile (cpu.py)
nf4_scratch                 its own kernels in CUDA graphs                    torch.compile
FP32, FP16, int8_scratch    torch.compile in CUDA graphs                      torch.compile
bitsandbytes                as it is: LLM.int8() asks the host in every       as it is
                            layer, which cannot be captured

Results are the model's own within rounding. Any batch and length is served; the first call of a shape compiles or captures.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .fused import FusedClassifier, can_fuse
