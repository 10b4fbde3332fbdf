"""One training engine for every stage: megatron-core's data-parallel model, schedule and optimizer, with resumable checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from stagecraft.megatron_cpu import ON_CPU, bind_adam

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from stagecraft.checkpoint.convert import from_hf, to_hf
from stagecraft.engine import parallel, whole
from stagecraft.engine.batch import Batch, whole_row
from stagecraft.engine.diagnostics import Diagnostics
from stagecraft.engine.optimizers import FusedAdam
from stagecraft.engine.pipeline import through
from stagecraft.engine.sharded_optimizer import ShardedOptimizer, build_optimizer
from stagecraft.model.build import build_model, transformer_config
from stagecraft.model.config import Architecture
from stagecraft.model.mtp import counts
from stagecraft.model.products import set_noise

bind_adam(FusedAdam)


@dataclass(frozen=True)
class Optimization:
    """Optimizer and schedule. Rates are per step; `decay_steps` of minus-sqrt decay end at `min_lr` (0: constant after warm-up).

    `further_steps` at the constant rate `further_lr` follow the `steps`.

    `optimizer`: "adamw", or "muon" for the matrices of the layers with `muon_lr_scale` times the rate, AdamW for the rest.
    """

    lr: float
    steps: int
    optimizer: str = "adamw"
    muon_lr_scale: float = 1.0
    min_lr: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    further_steps: int = 0
    further_lr: float = 0.0

    @property
    def all_steps(self) -> int:
        """To the end of the training."""
        return self.steps + self.further_steps

    @classmethod
    def of(cls, params: Any) -> Optimization:
        """From a stage's parameters, which name the same things; what they do not name keeps its default."""
        return cls(**{item.name: getattr(params, item.name) for item in fields(cls) if hasattr(params, item.name)})


@dataclass
class StepResult:
    """What a step did: means over the global batch, the gradient norm before clipping, the learning rate used.

    `skipped`: loss or gradient was no finite number, so that weights, moments and the routers' biases are those of before.
    """

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    mtp_losses: list[float] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    diagnostics: dict[str, float] = field(default_factory=dict)
    skipped: bool = False


LossFunction = Callable[[Tensor, Batch], tuple[Tensor, Tensor, dict[str, Tensor]]]


class Trainer:
    """A model under training on this rank.

    Args:
        architecture: shapes.
        optimization: rates and schedule.
        weights: canonical tensors to start from; None initialises from the current seed.
        frozen: a parameter whose Megatron name contains one of these keeps its value.
        diagnose_every: steps between the figures of `diagnostics`; 0 for none.
        options: of `transformer_config` (precision, mtp_depths, ...).
    """

    def __init__(self, architecture: Architecture, optimization: Optimization, *, max_sequence_length: int,
                 weights: Mapping[str, Tensor] | None = None, frozen: Sequence[str] = (), diagnose_every: int = 0,
                 **options: Any):
        self.architecture, self.optimization = architecture, optimization
        self.config = transformer_config(architecture, **parallel.sizes(), **options)
        self.module = build_model(architecture, self.config, max_sequence_length).to(torch.cuda.current_device())
        self.mtp = bool(self.config.mtp_num_layers)
        if weights is not None:
            self.load_weights(weights)
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(not any(part in name for part in frozen))
            if (optimization.optimizer == "muon" and parameter.dim() == 2
                    and not any(part in name for part in ("embedding", "output_layer", "mlp.experts"))):
                parameter.muon = optimization.muon_lr_scale
        # Gradients meet those of the other ranks, bucket by bucket, while the last microbatch's backward pass goes on.
        several = parallel_state.get_data_parallel_world_size(with_context_parallel=True) > 1
        self.model = DistributedDataParallel(
            self.config, DistributedDataParallelConfig(grad_reduce_in_fp32=True, overlap_grad_reduce=several), self.module)
        if several:
            self.config.no_sync_func = self.model.no_sync
        self.model.broadcast_params()
        self._dispatchers = [module.token_dispatcher for module in self.module.modules() if hasattr(module, "token_dispatcher")]
        self.diagnostics = Diagnostics(architecture, self.module, self.config.quant_recipe.in_the_model, diagnose_every)
        self.config.finalize_model_grads_func = self.diagnostics.around(finalize_model_grads)
        o = optimization
        self.optimizer = build_optimizer(OptimizerConfig(
            optimizer="adam", lr=o.lr, min_lr=o.min_lr, weight_decay=o.weight_decay, adam_beta1=o.betas[0], adam_beta2=o.betas[1],
            clip_grad=o.clip, bf16=self.config.bf16, params_dtype=self.config.params_dtype), self.model)
        for parameter in self.module.parameters():
            if hasattr(parameter, "muon"):
                self._main(parameter).muon = parameter.muon
        self.scheduler = OptimizerParamScheduler(
            self.optimizer, init_lr=0.0, max_lr=o.lr, min_lr=o.min_lr, lr_warmup_steps=o.warmup_steps,
            lr_decay_steps=max(o.steps, o.warmup_steps + 1), lr_decay_style="WSD" if o.decay_steps else "constant",
            start_wd=o.weight_decay, end_wd=o.weight_decay, wd_incr_steps=0, wd_incr_style="constant",
            wsd_decay_steps=o.decay_steps, lr_wsd_decay_style="minus_sqrt")
        self.steps_done = self.updates = 0  # of the steps, those that changed the weights: Adam corrects its moments by their number

    def step(self, batches: Sequence[Batch], loss: LossFunction | None = None) -> StepResult:
        """One optimizer step over this rank's microbatches; gradients are means over the tokens of all ranks that have a loss.

        A loss or a gradient that is no finite number leaves everything alone; the step is counted.

        Args:
            batches: at least one; the same number on every rank.
            loss: (model output, batch) -> (summed loss, number of tokens, sums to report). Default: next-token cross-entropy.
        """
        self.model.train()
        set_noise(self.steps_done, dist.get_rank())
        if not ON_CPU:  # Transformer Engine's rounding draws from the default generator, which nothing else uses and no checkpoint holds
            torch.cuda.manual_seed((self.steps_done << 20) + dist.get_rank())
        self.diagnostics.begin(self.steps_done + 1)
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        self.scheduler.step(1)
        targets = self._weigh_depths(batches)
        if self.steps_done >= self.optimization.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.optimization.further_lr
        biases = [(bias, bias.clone()) for name, bias in self.module.named_buffers() if name.endswith("expert_bias")]
        reports = through(self.model, batches, partial(self._forward, loss=loss), forward_only=False)
        for dispatcher in self._dispatchers:
            dispatcher.probs = None  # the last routing: by its graph the module refers to itself, which no garbage collector sees
        self.steps_done += 1
        sums, mtp_losses = self._told_by_last_stage((
            self._reduce(reports, parallel_state.get_data_parallel_group(with_context_parallel=True)), self._mtp_losses(targets)))
        self.optimizer.prepare_grads()
        norm = float(self.optimizer.get_grad_norm())
        finite = math.isfinite(norm) and math.isfinite(sums["loss"])
        if finite:
            self.optimizer.step()
            self.updates += 1
        else:
            for bias, before in biases:  # which megatron-core moved with the gradients' reduction
                bias.copy_(before)
        tokens = sums.pop("tokens")
        return StepResult(sums.pop("loss") / max(tokens, 1), norm, self.optimizer.param_groups[0]["lr"], int(tokens),
                          mtp_losses, sums, self.diagnostics.end(), skipped=not finite)

    def pass_over(self) -> None:
        """Count a step that has nothing to teach: the schedule goes on, weights and moments stay."""
        self.scheduler.step(1)
        self.steps_done += 1

    def _forward(self, batch: Batch, model: torch.nn.Module, loss: LossFunction | None = None) -> tuple[Tensor, Callable]:
        options: dict[str, Any] = {"loss_mask": batch.loss_mask} if self.mtp else {}
        labels = batch.labels if loss is None else None
        output = model(batch.tokens, torch.zeros_like(batch.tokens), None, labels=labels, packed_seq_params=batch.packed, **options)

        def summed(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            if loss is None:
                total, count, extra = (output.float() * batch.loss_mask).sum(), batch.targets, {}
            else:
                total, count, extra = loss(output, batch)
            return total, count.round().int(), {"loss": total.detach(), "tokens": count.detach().float(), **extra}

        return output, summed

    @staticmethod
    def _told_by_last_stage(value: Any) -> Any:
        """What the last stage of the pipeline has for `value`."""
        if parallel_state.get_pipeline_model_parallel_world_size() == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, parallel_state.get_pipeline_model_parallel_last_rank(),
                                   group=parallel_state.get_pipeline_model_parallel_group())
        return box[0]

    @staticmethod
    def _reduce(reports: list[dict[str, Tensor]], group: dist.ProcessGroup) -> dict[str, float]:
        """Sums over the microbatches of all ranks of `group`; nothing but on the last stage of the pipeline."""
        if not reports:
            return {}
        names = sorted(reports[0])
        sums = torch.stack([torch.stack([report[name].double() for report in reports]).sum() for name in names])
        dist.all_reduce(sums, group=group)
        return dict(zip(names, sums.tolist()))

    def _weigh_depths(self, batches: Sequence[Batch]) -> list[float]:
        """Give every MTP depth the weight in the step that the next token has, however few targets it has; returns these, by depth."""
        if not self.mtp:
            return []
        found = sum(counts(batch.loss_mask, batch.packed, self.config.mtp_num_layers) for batch in batches)
        dist.all_reduce(found, group=parallel_state.get_data_parallel_group())
        tokens, *targets = found.tolist()
        self.config.mtp.begin([tokens / count if count else 0.0 for count in targets])
        return targets

    def _mtp_losses(self, targets: list[float]) -> list[float]:
        """Means over the targets of the step, on the last stage of the pipeline."""
        if not self.mtp or not parallel_state.is_pipeline_last_stage():
            return []
        device = torch.cuda.current_device()
        sums = torch.stack([torch.as_tensor(each, dtype=torch.float64, device=device) for each in self.config.mtp.sums])
        dist.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        return [loss / count if count else 0.0 for loss, count in zip(sums.tolist(), targets)]

    @torch.no_grad()
    def loss(self, batch: Batch) -> tuple[float, int]:
        """Summed next-token loss (nats) and number of tokens of one batch, without quantisation or gradient.

        It is the same on all ranks of a model replica, which read the same batch.
        """
        depths, self.module.mtp_process = self.module.mtp_process, False  # the MTP block has no part in it
        try:
            sums = self._reduce(self._evaluated(batch), parallel_state.get_context_parallel_group())
        finally:
            self.module.mtp_process = depths
        return self._told_by_last_stage((sums["loss"], int(sums["tokens"])) if sums else None)

    @torch.no_grad()
    def mtp_agreement(self, batch: Batch) -> Tensor:
        """Whether the greedy draft of each depth of the MTP block is the token that comes, for a row [1, s]: bool [depths, s], in host
        memory on every rank of a model replica.

        At place j depth d drafts token j + 2 + d; past the end of a sequence it means nothing.
        """
        mtp = self.config.mtp
        mtp.agreed = []
        try:
            self._evaluated(batch)
            found = torch.stack([whole_row(each.int()) for each in mtp.agreed]).bool().cpu() if mtp.agreed else None
        finally:
            mtp.agreed = None
        return self._told_by_last_stage(found)

    def _evaluated(self, batch: Batch) -> list[dict[str, Tensor]]:
        self.model.eval()
        return through(self.model, [batch], self._forward, forward_only=True)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The optimizer's state that this rank has, by the names of the weights: `exp_avg`, `exp_avg_sq`, and `main`, the float32 values of
        a bfloat16 weight."""
        found: dict[Tensor, dict[str, Tensor]] = {}
        for part in self._optimizers():
            part.initialise_state()
            found.update(part.state)
        return {name: found[main] | ({} if main is parameter else {"main": main}) for name, parameter in self.module.named_parameters()
                if (main := self._main(parameter)) in found}

    @staticmethod
    def _main(parameter: Tensor) -> Tensor:
        """What the optimizer steps for a parameter: float32 values that megatron-core keeps of a bfloat16 one, or itself."""
        return getattr(parameter, "main_param", parameter)

    @property
    def shards_moments(self) -> bool:
        """Whether this rank has the moments of a share of its parameters only, the other data-parallel ranks those of the others."""
        return isinstance(self.optimizer, ShardedOptimizer)

    def go_on_from(self, step: int, updates: int) -> None:
        """Count `step` steps as done, `updates` of which changed the weights."""
        self.steps_done, self.updates = step, updates
        for part in self._optimizers():
            for group in part.param_groups:
                group["step"] = updates

    def _optimizers(self) -> list[FusedAdam]:
        return [part.optimizer for part in getattr(self.optimizer, "chained_optimizers", [self.optimizer])]

    def weights(self) -> dict[str, Tensor]:
        """Canonical tensors of the model, on rank 0; nothing on the others. Every rank calls it."""
        state = whole.gather(self.module)
        return dict(to_hf(self.architecture, state, self.mtp)) if state else {}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over canonical tensors; those of the MTP block only where this model has one."""
        whole.scatter(self.module, self.architecture, from_hf(self.architecture, tensors, self.mtp))
