"""The KFP component of the quantize stage: wiring only."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from stagecraft.contract.images import image


@dsl.component(base_image=image("quantize"), install_kfp_package=False)
def quantize(params: str, corpus: Input[Dataset], aligned: Input[Model],
             fp8: Output[Model], nvfp4: Output[Model], metrics: Output[Metrics]) -> None:
    """Quantise the aligned model to FP8 and NVFP4."""
    from stagecraft.contract.kfp_task import run_task

    run_task("quantize", params, inputs={"corpus": corpus, "aligned": aligned}, outputs={"fp8": fp8, "nvfp4": nvfp4}, metrics=metrics)
