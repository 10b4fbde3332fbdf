"""From an existing base checkpoint on: `kfp run pipelines/post_training.py`. Fine-tuning, RL, quantisation, evaluation, serving."""

from kfp import dsl
from kfp.dsl import Dataset, Model

from pipelines.after_base import after_base
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
    after_base(corpus, base, sft_params=sft_params, rl_params=rl_params, quantize_params=quantize_params,
               evaluate_params=evaluate_params, serve_params=serve_params)
