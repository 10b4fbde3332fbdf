"""The KFP component of the pretrain stage: wiring only."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from stagecraft.contract.images import image
from stagecraft.contract.pod import on_nodes


@dsl.component(base_image=image("pretrain"), install_kfp_package=False, task_config_passthroughs=on_nodes("pretrain"))
def pretrain(params: str, corpus: Input[Dataset], base: Output[Model], metrics: Output[Metrics],
             task_config: dsl.TaskConfig) -> None:
    """Train the base model on the corpus."""
    from stagecraft.contract.kfp_task import run_task

    run_task("pretrain", params, inputs={"corpus": corpus}, outputs={"base": base}, metrics=metrics,
             task_config=task_config)
