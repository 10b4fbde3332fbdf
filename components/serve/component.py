"""The KFP component of the serve stage: wiring only."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Metrics, Model, Output

from stagecraft.contract.images import image


@dsl.component(base_image=image("serve"), install_kfp_package=False)
def serve(params: str, aligned: Input[Model], fp8: Input[Model], nvfp4: Input[Model], evaluation: Input[Artifact],
          serving: Output[Artifact], metrics: Output[Metrics]) -> None:
    """Serve the promoted model, check it and write its deployment."""
    from stagecraft.contract.kfp_task import run_task

    run_task("serve", params, inputs={"aligned": aligned, "fp8": fp8, "nvfp4": nvfp4, "evaluation": evaluation},
             outputs={"serving": serving}, metrics=metrics)
