"""The KFP component of the rl stage: wiring only."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from stagecraft.contract.images import image
from stagecraft.contract.pod import on_nodes


@dsl.component(base_image=image("rl"), install_kfp_package=False, task_config_passthroughs=on_nodes("rl"))
def rl(params: str, corpus: Input[Dataset], sft: Input[Model], aligned: Output[Model], metrics: Output[Metrics],
       task_config: dsl.TaskConfig) -> None:
    """Reinforce what the verifiers reward."""
    from stagecraft.contract.kfp_task import run_task

    run_task("rl", params, inputs={"corpus": corpus, "sft": sft}, outputs={"aligned": aligned}, metrics=metrics,
             task_config=task_config)
