"""The KFP component of the sft stage: wiring only."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from stagecraft.contract.images import image


@dsl.component(base_image=image("sft"), install_kfp_package=False)
def sft(params: str, corpus: Input[Dataset], base: Input[Model], sft: Output[Model], metrics: Output[Metrics]) -> None:
    """Teach the base model to follow the tasks' demonstrations."""
    from stagecraft.contract.kfp_task import run_task

    run_task("sft", params, inputs={"corpus": corpus, "base": base}, outputs={"sft": sft}, metrics=metrics)
