"""All seven stages as one DAG: `kfp run pipelines/full.py`. Wiring only; the numbers are those of params.yaml."""

from kfp import dsl

from components.curate.component import curate
from components.pretrain.component import pretrain
from pipelines.after_base import after_base
from stagecraft.contract.kfp_task import section
from stagecraft.contract.pod import in_pod


@dsl.pipeline(name="stagecraft-full", description="From raw text to a served model: curate, pretrain, sft, rl, quantize, evaluate, serve")
def full(
    curate_params: str = section("curate"),
    pretrain_params: str = section("pretrain"),
    sft_params: str = section("sft"),
    rl_params: str = section("rl"),
    quantize_params: str = section("quantize"),
    evaluate_params: str = section("evaluate"),
    serve_params: str = section("serve"),
) -> None:
    """Each parameter is one stage's section of the profile, as JSON."""
    corpus = in_pod(curate(params=curate_params)).outputs["corpus"]
    base = in_pod(pretrain(params=pretrain_params, corpus=corpus)).outputs["base"]
    after_base(corpus, base, sft_params=sft_params, rl_params=rl_params, quantize_params=quantize_params,
               evaluate_params=evaluate_params, serve_params=serve_params)
