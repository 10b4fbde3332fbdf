"""Low-precision number formats as pure functions on tensors: NVFP4, MXFP8, FP8, stochastic rounding, random Hadamard transform."""
