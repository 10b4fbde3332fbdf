"""All seven stages as one DAG: `kfp run pipelines/full.py`. Wiring only; the numbers are those of params.yaml."""

from kfp import dsl

from components.curate.component import curate
from components.evaluate.component import evaluate
from components.pretrain.component import pretrain
from components.quantize.component import quantize
from components.rl.component import rl
from components.serve.component import serve
from components.sft.component import sft
from stagecraft.contract.kfp_task import section


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
    corpus = curate(params=curate_params).outputs["corpus"]
    base = pretrain(params=pretrain_params, corpus=corpus).outputs["base"]
    tuned = sft(params=sft_params, corpus=corpus, base=base).outputs["sft"]
    aligned = rl(params=rl_params, corpus=corpus, sft=tuned).outputs["aligned"]
    small = quantize(params=quantize_params, corpus=corpus, aligned=aligned).outputs
    evaluation = evaluate(params=evaluate_params, corpus=corpus, base=base, sft=tuned, aligned=aligned,
                          fp8=small["fp8"], nvfp4=small["nvfp4"]).outputs["evaluation"]
    serve(params=serve_params, aligned=aligned, fp8=small["fp8"], nvfp4=small["nvfp4"], evaluation=evaluation)
