"""The KFP component of the curate stage: wiring only."""

from kfp import dsl
from kfp.dsl import Dataset, Metrics, Output

from stagecraft.contract.images import image


@dsl.component(base_image=image("curate"), install_kfp_package=False)
def curate(params: str, corpus: Output[Dataset], metrics: Output[Metrics]) -> None:
    """Turn raw text into a deduplicated, tokenised corpus, and make the verifiable tasks."""
    from stagecraft.contract.kfp_task import run_task

    run_task("curate", params, outputs={"corpus": corpus}, metrics=metrics)
