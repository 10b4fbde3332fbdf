"""The benchmarks: one YAML per task in lm-eval's schema, and the code that their `!function` tags name."""
