"""The KFP component of the sft stage: wiring only."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from stagecraft.contract.images import image
from stagecraft.contract.pod import on_nodes


@dsl.component(base_image=image("sft"), install_kfp_package=False, task_config_passthroughs=on_nodes("sft"))
def sft(params: str, corpus: Input[Dataset], base: Input[Model], sft: Output[Model], metrics: Output[Metrics],
        task_config: dsl.TaskConfig) -> None:
    """Teach the base model to follow the tasks' demonstrations."""
    from stagecraft.contract.kfp_task import run_task

    run_task("sft", params, inputs={"corpus": corpus, "base": base}, outputs={"sft": sft}, metrics=metrics,
             task_config=task_config)
