"""Serve: the promoted model on vLLM's OpenAI server, checked, measured, and written down as a deployment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from components.serve.deployment import PORT, arguments, objects, write_manifest
from components.serve.params import Params
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_json
from stagecraft.contract.registry import promoted
from stagecraft.contract.runlog import RunLog

__all__ = ["Params", "main"]


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, Any]:
    """Start the promoted model, see that it serves, measure it, write its deployment, stop it.

    Two servers run side by side, with drafts by multi-token prediction and without: the answers must be the same.

    Args:
        inputs: `aligned`, `fp8`, `nvfp4` (checkpoints with a manifest) and `evaluation` (with promotion.json).
        outputs: `serving`, a directory: vllm_args.json, deployment.yaml, report.json.

    Returns:
        `promoted`, `tokens_per_second` (the best concurrency's), `time_to_first_token_ms_p50` and `_p95` (at the lowest concurrency),
        `inter_token_ms`, `mtp_mean_accepted_length` (tokens a verification step yields, 1 + accepted drafts; 1 without drafts),
        `mtp_acceptance_<position>`, `mtp_identical` (share of answers that equal those without drafts token for token),
        `tokens_per_second_without_mtp`, `exact_match` (over the prompts asked here), `tool_calls`; shares and lengths with `_stderr`;
        `modes` (by reasoning mode: thinking tokens, answer tokens, exact match, with standard errors).

    Raises:
        UserError: nothing was promoted, the checkpoint cannot be read, a prompt and its answer are longer than the server takes, or a
            server was not up in the time that the parameters give it.
        ServerDiedError: a server did not come up; its last lines are in the message.
        CheckFailedError: it came up and does not serve as it should.
    """
    from components.serve.prompts import check_lengths
    from components.serve.reasoning import metrics
    from components.serve.session import inspect
    from stagecraft.inference.server import Server, ServerLateError, running
    from stagecraft.inference.server_settings import drafts_borne, local_arguments

    model, verdict = promoted(inputs, "see report.html beside it; train further or change evaluate.gate in the parameters, "
                              "then run dvc repro serve")
    log.note(f"serving {verdict['promoted']}: {verdict['reason']}")
    check_lengths(model, params)
    settings = params.server
    plain = Server(model, replace(settings, draft_tokens=0), log.work / "plain.log")
    drafting = Server(model, settings, log.work / "drafting.log") if settings.draft_tokens else plain
    servers = [plain, drafting] if settings.draft_tokens else [plain]
    with log.bar("start, check, measure", total=3, unit="part") as bar:
        try:
            with running(*servers):
                bar.advance()
                report = inspect(plain, drafting, params, log, bar.advance)
        except ServerLateError as error:
            raise UserError(str(error).splitlines()[0].partition(";")[0], where="serve.server.startup_seconds",
                            mend=f"give it more time; what it said is in {log.work}") from error

    out, deployed = outputs["serving"], params.deployment
    drafts = drafts_borne(settings.draft_tokens, model, deployed.dtype)
    if drafts < settings.draft_tokens:
        log.note(f"deployed without drafts: vLLM bears none in {deployed.dtype} from a checkpoint whose config.json names another dtype")
    write_json(out / "report.json", {"promoted": verdict["promoted"], "digest": verdict["digest"], **report})
    write_json(out / "vllm_args.json", {
        "checked_here": local_arguments(model, settings, PORT),
        "deployed": arguments(settings.name, deployed, drafts),
    })
    write_manifest(out / "deployment.yaml", objects(settings.name, deployed, drafts, verdict))
    best = max(report["load"], key=lambda level: level["tokens_per_second"])
    alone = report["load"][0]
    log.record(engine="vllm", compute_dtype=settings.dtype, served=verdict["promoted"])
    return {
        "promoted": verdict["promoted"], "tokens_per_second": best["tokens_per_second"],
        "tokens_per_second_without_mtp": max(level["tokens_per_second"] for level in report["load_without_mtp"]),
        "time_to_first_token_ms_p50": alone["ttft_ms_p50"], "time_to_first_token_ms_p95": alone["ttft_ms_p95"],
        "inter_token_ms": alone["itl_ms_mean"],
        "mtp_identical": report["mtp"]["identical"],
        **{f"mtp_{name}": report["mtp"][name] for name in ("mean_accepted_length", "mean_accepted_length_stderr")},
        **{f"mtp_acceptance_{place}{suffix}": value for suffix in ("", "_stderr")
           for place, value in enumerate(report["mtp"][f"acceptance_by_position{suffix}"], 1)},
        **report["answers"], "modes": metrics(report["modes"]),
    }
