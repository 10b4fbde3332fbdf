"""`stagecraft plan`: what a profile needs and takes on a cluster, before anybody pays for it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.table import Table

from stagecraft.contract.bounded import Count, Positive
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import parse, read_profile, section_of
from stagecraft.inference.server_settings import Settings
from stagecraft.model.config import Architecture
from stagecraft.planning.architecture import nemotron_h
from stagecraft.planning.formats import formats
from stagecraft.planning.hardware import Cluster, Efficiencies, cluster, efficiencies
from stagecraft.planning.layout import Workload, parse_layout
from stagecraft.planning.memory import State
from stagecraft.planning.plan import Run, plan_serving, plan_training
from stagecraft.planning.serving import Drafts

_LENGTHS = "1k/1k,8k/1k,8k/64k,64k/8k"


@dataclass(config=ConfigDict(extra="ignore", strict=True, frozen=True), kw_only=True)
class _Pretraining:
    """What is read of section `pretrain`. The rest is not looked at: its layout need not go with what is planned, which finds one."""

    architecture: Architecture
    sequence_length: Positive
    global_batch: Positive
    mtp_depths: Count
    optimizer: Literal["adamw", "muon"]
    precision: str
    steps: Positive


def main(argv: Sequence[str]) -> None:
    """Entry point of the subcommand."""
    parser = argparse.ArgumentParser(
        prog="stagecraft plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
               "  stagecraft plan params/super-120b.yaml --gpus 64xGB300            the fastest layout that fits\n"
               "  stagecraft plan super-120b --gpus 64xB200 --layout tp=2,ep=64     that layout, or by how much it does not fit\n"
               "  stagecraft plan super-120b --gpus 8xB200 --stage serve            sequences and tokens per second\n"
               "docs/planning.md has the formulas and how far they are from published figures.")
    parser.add_argument("profile", help="a profile's path, or its name in params/; laptop is params.yaml")
    parser.add_argument("--gpus", default="64xB200", metavar="NxGPU", help="such as 64xB200 (default: %(default)s)")
    parser.add_argument("--stage", choices=["pretrain", "serve"], default="pretrain")
    parser.add_argument("--precision", metavar="NAME",
                        help="a recipe of planning/formats.yaml (default: the profile's; to serve, the narrowest the GPU has)")
    parser.add_argument("--price", type=_positive, metavar="USD", help="per GPU and hour (default: of gpus.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="an efficiency, such as sustained=0.6 or gemm.nvfp4=0.7")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    train = parser.add_argument_group("pre-training")
    train.add_argument("--tokens", type=_positive, metavar="N", help="token budget, such as 25e12 (default: the profile's)")
    train.add_argument("--layout", metavar="tp=2,ep=64,...", help="names: tp, cp, pp, ep, dp, micro, recompute (default: search)")
    train.add_argument("--gradients", choices=["float32", "bfloat16"], default="float32", help="of the gradient buffer")
    train.add_argument("--mtbf-hours", type=_positive, default=50_000.0, metavar="H",
                       help="mean hours between failures of one GPU with its share of the rest (default: %(default)g; "
                            "419 in 54 days on 16,384 GPUs, arXiv 2407.21783, section 3.3.4)")
    serving = parser.add_argument_group("serving")
    serving.add_argument("--lengths", default=_LENGTHS, metavar="IN/OUT,...", help="tokens of prompt and answer (default: %(default)s)")
    serving.add_argument("--drafts", type=_whole, metavar="N", help="by multi-token prediction (default: the profile's)")
    serving.add_argument("--accepted", type=_positive, metavar="X", help="mean tokens per step with them (default: from 3.45 at 7 drafts)")
    serving.add_argument("--tensor", type=_whole, metavar="N", help="GPUs of one engine (default: the best of 1, 2, 4, ...)")
    options = parser.parse_args(argv)
    machines = cluster(options.gpus)
    plan = (_training if options.stage == "pretrain" else _serving)(options, machines, _changed(options.set))
    if options.json:
        print(json.dumps(plan, indent=2))
        return
    console = Console(width=120)
    for title, table in (_training_tables if options.stage == "pretrain" else _serving_tables)(plan):
        console.print(title, style="bold", highlight=False)
        console.print(table)


def _training(options: argparse.Namespace, machines: Cluster, efficiency: Efficiencies) -> dict[str, Any]:
    section = parse(_Pretraining, *_section(options.profile, "pretrain"))
    work = Workload(section.sequence_length, section.global_batch, section.mtp_depths, section.optimizer)
    recipe = formats("training", options.precision or section.precision)
    run = Run(work, options.tokens or work.tokens * section.steps, options.mtbf_hours, options.price or machines.gpu.price)
    layout = parse_layout(options.layout, machines.count) if options.layout else None
    state = State(gradient=2.0) if options.gradients == "bfloat16" else None
    return plan_training(nemotron_h(section.architecture), run, machines, recipe, efficiency, layout, state)


def _serving(options: argparse.Namespace, machines: Cluster, efficiency: Efficiencies) -> dict[str, Any]:
    architecture = parse(_Pretraining, *_section(options.profile, "pretrain")).architecture
    if options.tensor is not None and (not 0 < options.tensor <= machines.count or architecture.num_attention_heads % options.tensor):
        raise UserError(f"engines of {options.tensor} GPUs cannot be made of {options.gpus} with {architecture.num_attention_heads} heads",
                        where="--tensor", mend="give a divisor of the heads that the GPUs suffice for")
    section, where = _section(options.profile, "serve")
    server = parse(Settings, section_of(section, "server", where), f"{where}.server")
    length = server.draft_tokens if options.drafts is None else options.drafts
    length = length if architecture.num_nextn_predict_layers else 0
    if options.accepted and not 1 <= options.accepted <= length + 1:
        raise UserError(f"{options.accepted:g} tokens of a step cannot be kept with {length} drafts", where="--accepted",
                        mend=f"give 1 to {length + 1}: the certain token is always kept, and each draft at most")
    drafts = None
    if length:
        drafts = Drafts(length, options.accepted) if options.accepted else Drafts.expected(length)
    narrowest = next(name for name in ("nvfp4", "fp8", "bf16") if name in machines.gpu.peak or name == "bf16")
    return plan_serving(nemotron_h(architecture), machines, formats("serving", options.precision or narrowest), efficiency,
                        _lengths(options.lengths), drafts=drafts, limit=server.max_num_seqs,
                        price=options.price or machines.gpu.price, tensor=options.tensor)


def _section(profile: str, name: str) -> tuple[dict[str, Any], str]:
    """(section of the profile, where it is)."""
    named = {"laptop": Path("params.yaml"), **{path.stem: path for path in sorted(Path("params").glob("*.yaml"))}}
    path = named.get(profile, Path(profile))
    if not path.is_file():
        raise UserError(f"no profile {profile!r}", where="stagecraft plan", mend=f"give a path, or one of {', '.join(named)}")
    return section_of(read_profile(path), name, str(path)) or {}, f"{path}: {name}"


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{text!r} is no positive number", where="stagecraft plan", mend="write it like 25e12 or 4.5")
    return value


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{text!r} is no whole number", where="stagecraft plan", mend="write it like 3")
    return int(text)


def _lengths(text: str) -> list[tuple[int, int]]:
    try:
        pairs = [tuple(int(float(part[:-1]) * 1024) if part.endswith("k") else int(part) for part in pair.split("/"))
                 for pair in text.split(",")]
        if any(len(pair) != 2 or min(pair) < 1 or max(pair) > 2**53 for pair in pairs):
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError(f"{text!r} are no lengths", where="--lengths", mend="write them like 8k/64k,1000/200") from None
    return pairs


def _changed(settings: Sequence[str]) -> Efficiencies:
    """The stated efficiencies with some replaced."""
    values = {field.name: getattr(efficiencies(), field.name) for field in fields(Efficiencies)}
    values["overlap"] = {field.name: getattr(values["overlap"], field.name) for field in fields(values["overlap"])}
    for setting in settings:
        key, _, text = setting.partition("=")
        outer, _, inner = key.partition(".")
        target, name = (values.get(outer), inner) if inner else (values, outer)
        try:
            if not isinstance(target, dict) or name not in target or isinstance(target[name], dict):
                raise KeyError
            target[name] = float(text)
        except (KeyError, ValueError):
            raise UserError(f"{setting!r} sets no efficiency", where="--set",
                            mend=f"keys are {', '.join(values)}; write gemm.nvfp4=0.7") from None
    return parse(Efficiencies, values, "--set")


def _number(value: float) -> str:
    """Three digits and a unit: 12.8 G."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _table(*columns: str) -> Table:
    table = Table(show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _training_tables(plan: dict[str, Any]) -> list[tuple[str, Table]]:
    model = _table("", "")
    for name, value in plan["parameters"].items():
        model.add_row(f"{name} parameters", _number(value))
    total = sum(plan["flops_per_token"].values())
    flops = _table("operator", "FLOP", "share")
    for name, value in sorted(plan["flops_per_token"].items(), key=lambda item: -item[1]):
        flops.add_row(name, _number(value), f"{value / total:.1%}")
    flops.add_row("all", _number(total), "")
    memory = _table("", "GB")
    for name, value in plan["memory"].items():
        memory.add_row({"total": "all", "limit": "usable"}.get(name, name), f"{value / 1e9:.1f}")
    chosen = f"layout: {plan['layout']['text']}"
    if plan["searched"]:
        chosen += f" (the fastest; {plan['searched']['fitting']} of {plan['searched']['possible']} possible ones fit)"
    chosen += f"\n{_in_profile(plan['layout'])}"
    sent = _table("dimension", "NVLink", "network")
    for name, value in plan["communication"].items():
        sent.add_row(name, f"{value['nvlink'] / 1e9:.1f}", f"{value['network'] / 1e9:.1f}")
    step = plan["step"]
    time = _table("", "seconds", "share")
    for name, value in sorted(step["parts"].items(), key=lambda item: -item[1]):
        time.add_row(name, f"{value:.3f}", f"{value / step['seconds']:.1%}")
    time.add_row("all", f"{step['seconds']:.3f}", "")
    run, saved = plan["run"], plan["checkpoint"]
    result = _table("", "")
    for name, value in (
            ("tokens per second and GPU", f"{step['tokens_per_gpu']:,.0f}"),
            ("model TFLOP/s per GPU", f"{step['flops_per_gpu'] / 1e12:,.0f}"),
            ("of the BF16 peak", f"{step['mfu_bf16']:.1%}"), ("tokens", _number(run["tokens"])), ("steps", f"{run['steps']:,.0f}"),
            ("days without failures", f"{run['days']:,.1f}"), ("days with them", f"{run['days_with_failures']:,.1f}"),
            ("GPU hours", f"{run['gpu_hours']:,.0f}"), (f"cost at ${run['price']:g} per GPU and hour", f"${run['cost']:,.0f}"),
            ("checkpoint", f"{saved['bytes'] / 1e9:,.0f} GB in {saved['seconds']:.0f} s"),
            ("interval, Young", f"{saved['young'] / 60:.0f} min"),
            ("interval, Daly", f"{saved['daly'] / 60:.0f} min, {saved['steps_between']:,.0f} steps"),
            ("time that computes", f"{saved['useful']:.2%}")):
        result.add_row(name, value)
    return [("model", model), ("training FLOPs per token", flops), (f"{chosen}\nmemory per GPU", memory),
            ("sent per GPU and step, GB", sent),
            (f"one step of {step['tokens']:,} tokens on {plan['cluster']}, {plan['precision']}", time), ("run", result)]


def _in_profile(layout: dict[str, Any]) -> str:
    """How section `pretrain` of a profile says a layout."""
    names = {"tensor": "tp", "pipeline": "pp", "context": "cp", "expert": "ep", "recompute": "recompute"}
    sizes = ", ".join(f"{name}: {layout[short]}" for name, short in names.items())
    return f"in the profile: layout: {{{sizes}}}, micro_batch: {layout['micro']}"


def _serving_tables(plan: dict[str, Any]) -> list[tuple[str, Table]]:
    table = _table("in/out", "drafts", "accepted", "GPUs", "weights GB", "seq. MB", "resident", "step ms", "prompt ms", "tok/s/GPU", "$/M")
    for row in plan["serving"]:
        table.add_row(f"{row['prompt']}/{row['answer']}", str(row["drafts"]), f"{row['accepted']:.2f}", str(row["gpus"]),
                      f"{row['weights'] / 1e9:.1f}", f"{row['sequence'] / 1e6:.1f}", str(row["resident"]), f"{row['decode'] * 1e3:.2f}",
                      f"{row['prefill'] * 1e3:.1f}", f"{row['tokens']:,.0f}", f"{row['dollars_per_million']:.3f}")
    title = (f"serving on {plan['cluster']}, {plan['precision']}, at ${plan['price']:g} per GPU and hour; GPUs of one engine, mean bytes "
             "of a sequence,\nsequences at once, generated tokens per second and GPU, dollars per million of them")
    return [(title, table)]
