"""A project directory with the record of a run in it, some of it hostile."""

from pathlib import Path

from stagecraft.contract import manifest
from stagecraft.contract.files import write_json

HOSTILE = "<script>alert(1)</script>"


def _model(share: float) -> dict:
    return {"exact_match": share, "exact_match_stderr": 0.019, "bits_per_byte": 6.09, "bits_per_byte_stderr": 0.02,
            "families": {"sort": {"exact_match": share, "stderr": 0.03, "n": 100}}}


def write_tree(root: Path) -> Path:
    """Two curves, two models, a reasoning mode, two artifacts of which one is made from the other."""
    write_json(root / "metrics" / "rl.json", {"reward_last": 0.5, HOSTILE: 1.0, "families": {"sort": {"exact_match": 0.25}}})
    write_json(root / "artifacts" / "serving" / "report.json", {"modes": [{
        "mode": "low", "thinking_tokens": 5.5, "thinking_tokens_stderr": 0.5, "answer_tokens": 3.0, "answer_tokens_stderr": 0.0,
        "exact_match": 0.25, "exact_match_stderr": 0.1}]})
    (root / "plots" / "rl").mkdir(parents=True)
    (root / "plots" / "rl" / "train.csv").write_text(f"step,reward,{HOSTILE},single\n1,0.0,3,\n2,1.0,4,\n3,0.5,nan,7\n")
    write_json(root / "artifacts" / "evaluation" / "evaluation.json",
               {"figures": {"aligned": _model(0.682), "sft": _model(0.503), "comparisons": {}}})
    write_json(root / "artifacts" / "evaluation" / "promotion.json",
               {"promoted": "aligned", "reason": f"best {HOSTILE}", "digest": "d" * 64})
    (root / "artifacts" / "evaluation" / "report.html").write_text("<html><style>p{}</style><p>the report</p></html>")
    for name, inputs in (("sft", {}), ("aligned", {"sft": "e" * 64})):
        directory = root / "artifacts" / name
        directory.mkdir()
        (directory / "weights").write_text(name)
        manifest.write(directory, stage=name, params={}, inputs=inputs, code="", environment={}, metrics={})
    return root
