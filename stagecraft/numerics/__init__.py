"""Low-precision number formats as pure functions on tensors: NVFP4, MXFP8, FP8, FP16, stochastic rounding, Philox, Hadamard transform."""
