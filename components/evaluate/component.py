"""The KFP component of the evaluate stage: wiring only."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from stagecraft.contract.images import image


@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def evaluate(params: str, corpus: Input[Dataset], base: Input[Model], sft: Input[Model], aligned: Input[Model],
             fp8: Input[Model], nvfp4: Input[Model], evaluation: Output[Artifact], metrics: Output[Metrics]) -> None:
    """Measure every checkpoint side by side and decide what is promoted."""
    from stagecraft.contract.kfp_task import run_task

    run_task("evaluate", params, inputs={"corpus": corpus, "base": base, "sft": sft, "aligned": aligned, "fp8": fp8, "nvfp4": nvfp4},
             outputs={"evaluation": evaluation}, metrics=metrics)
