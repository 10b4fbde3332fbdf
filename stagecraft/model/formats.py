"""The number formats that products are asked for, by name; light to import, for what checks a profile."""

NVFP4, MXFP8, FP8 = "nvfp4", "mxfp8", "fp8"
