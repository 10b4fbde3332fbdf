"""From an existing base checkpoint on: `kfp run pipelines/post_training.py`. Fine-tuning, RL, quantisation, evaluation, serving."""

from kfp import dsl
from kfp.dsl import Dataset, Model

from components.evaluate.component import evaluate
from components.quantize.component import quantize
from components.rl.component import rl
from components.serve.component import serve
from components.sft.component import sft
from stagecraft.contract.kfp_task import section
from stagecraft.contract.stages import PATHS


@dsl.pipeline(name="stagecraft-post-training", description="From a base checkpoint to a served model: sft, rl, quantize, evaluate, serve")
def post_training(
    corpus_uri: str = str(PATHS["corpus"]),
    base_uri: str = str(PATHS["base"]),
    sft_params: str = section("sft"),
    rl_params: str = section("rl"),
    quantize_params: str = section("quantize"),
    evaluate_params: str = section("evaluate"),
    serve_params: str = section("serve"),
) -> None:
    """`corpus_uri` and `base_uri` name finished artifacts (directories with a manifest.json); the rest is as in the full pipeline."""
    corpus = dsl.importer(artifact_uri=corpus_uri, artifact_class=Dataset, reimport=False).output
    base = dsl.importer(artifact_uri=base_uri, artifact_class=Model, reimport=False).output
    tuned = sft(params=sft_params, corpus=corpus, base=base).outputs["sft"]
    aligned = rl(params=rl_params, corpus=corpus, sft=tuned).outputs["aligned"]
    small = quantize(params=quantize_params, corpus=corpus, aligned=aligned).outputs
    evaluation = evaluate(params=evaluate_params, corpus=corpus, base=base, sft=tuned, aligned=aligned,
                          fp8=small["fp8"], nvfp4=small["nvfp4"]).outputs["evaluation"]
    serve(params=serve_params, aligned=aligned, fp8=small["fp8"], nvfp4=small["nvfp4"], evaluation=evaluation)
