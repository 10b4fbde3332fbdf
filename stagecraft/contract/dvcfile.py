"""dvc.yaml, derived: one stage per component, its code and artifacts as dependencies. `python -m stagecraft.contract.dvcfile` writes it.

A stage depends on its own component and on the packages of `stagecraft` that its imports reach, found by reading them; of
`contract` only what shapes an artifact counts, so that mending the terminal's bar makes no model stale.
"""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stagecraft.contract.code import code_of
from stagecraft.contract.files import write_atomic
from stagecraft.contract.stages import PATHS, STAGES, Stage

DVC_YAML = Path("dvc.yaml")
_HEAD = """\
# The pipeline's memory: one stage per component. `dvc repro STAGE` runs what is stale, `dvc repro -s STAGE` that stage alone.
# Written by `python -m stagecraft.contract.dvcfile` from stagecraft/contract/stages.py and the stages' imports.
"""

# Curves worth a plot: title -> axis label and, per file, the column or columns (stages write one CSV per curve, `step` first).
CURVES: dict[str, tuple[str, dict[str, str | list[str]]]] = {
    "Training loss": ("nats per token", {"plots/pretrain/train.csv": "loss", "plots/sft/train.csv": "loss"}),
    "Held-out loss": ("nats per token", {"plots/pretrain/heldout.csv": ["loss", "merged"]}),
    "Training speed": ("tokens per second", {"plots/pretrain/speed.csv": "tokens_per_second", "plots/sft/speed.csv": "tokens_per_second"}),
    "RL reward": ("mean reward", {"plots/rl/train.csv": "reward"}),
}


def render(root: Path) -> dict[str, Any]:
    """The content of dvc.yaml for the code under `root`."""
    return {"stages": {stage.name: _stage(root, stage) for stage in STAGES.values()}, "plots": [_plot(*item) for item in CURVES.items()]}


def _stage(root: Path, stage: Stage) -> dict[str, Any]:
    return {
        "cmd": f"python -m components.{stage.name}",
        "deps": [*code_of(root, stage.name), *(PATHS[name].as_posix() for name in stage.inputs)],
        "params": [stage.name],
        "outs": [*(PATHS[name].as_posix() for name in stage.outputs), stage.plots_path.as_posix()],
        "metrics": [stage.metrics_path.as_posix()],
    }


def _plot(title: str, curve: tuple[str, dict[str, str | list[str]]]) -> dict[str, Any]:
    label, columns = curve
    return {title: {"x": "step", "y": columns, "x_label": "step", "y_label": label, "template": "linear"}}


def main() -> None:
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    stream = StringIO()
    yaml.dump(render(Path.cwd()), stream)
    write_atomic(DVC_YAML, _HEAD + stream.getvalue())


if __name__ == "__main__":
    main()
