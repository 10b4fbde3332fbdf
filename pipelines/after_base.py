"""The part that all pipelines share: from a base checkpoint to a served model."""

from kfp.dsl.pipeline_channel import PipelineChannel

from components.evaluate.component import evaluate
from components.quantize.component import quantize
from components.rl.component import rl
from components.serve.component import serve
from components.sft.component import sft
from stagecraft.contract.pod import in_pod


def after_base(corpus: PipelineChannel, base: PipelineChannel, *, sft_params: str, rl_params: str, quantize_params: str,
               evaluate_params: str, serve_params: str) -> None:
    """Wire fine-tuning, RL, quantisation, evaluation and serving behind `corpus` and `base`; call it inside a pipeline function."""
    tuned = in_pod(sft(params=sft_params, corpus=corpus, base=base)).outputs["sft"]
    aligned = in_pod(rl(params=rl_params, corpus=corpus, sft=tuned)).outputs["aligned"]
    small = in_pod(quantize(params=quantize_params, corpus=corpus, aligned=aligned)).outputs
    evaluation = in_pod(evaluate(params=evaluate_params, corpus=corpus, base=base, sft=tuned, aligned=aligned,
                                 fp8=small["fp8"], nvfp4=small["nvfp4"])).outputs["evaluation"]
    in_pod(serve(params=serve_params, aligned=aligned, fp8=small["fp8"], nvfp4=small["nvfp4"], evaluation=evaluation))
