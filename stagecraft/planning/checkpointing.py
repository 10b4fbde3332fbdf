"""How often to save: the interval that loses least time to failures and to saving."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, expm1, sqrt

from stagecraft.contract.errors import UserError

_BYTES = 14.0  # of a parameter: BF16 weights, FP32 master weights and two FP32 moments


@dataclass(frozen=True)
class Checkpointing:
    """Seconds between the starts of a job's checkpoints, by both formulas, and the share of time that computes at Daly's."""

    bytes: float
    seconds: float
    young: float
    daly: float
    useful: float


def young_interval(save: float, mtbf: float) -> float:
    """Seconds of computation between checkpoints that take `save` seconds: sqrt(2 save mtbf) (Young 1974, CACM 17(9))."""
    return sqrt(2 * save * mtbf)


def daly_interval(save: float, mtbf: float) -> float:
    """Daly's higher-order estimate (2006, Future Generation Computer Systems 22(3), equation 37).

    sqrt(2 save mtbf) (1 + sqrt(save / 2 mtbf) / 3 + save / (9 * 2 mtbf)) - save while save < 2 mtbf, and mtbf beyond.
    """
    if save >= 2 * mtbf:
        return mtbf
    ratio = save / (2 * mtbf)
    return sqrt(2 * save * mtbf) * (1 + sqrt(ratio) / 3 + ratio / 9) - save


def wall_time(work: float, interval: float, save: float, restart: float, mtbf: float) -> float:
    """Expected seconds for `work` seconds of computation with exponential failures (Daly 2006, the complete model).

    mtbf e^(restart / mtbf) (e^((interval + save) / mtbf) - 1) work / interval: a failure costs what was done since the last
    checkpoint and `restart` seconds, in either of which the next may come.
    """
    return mtbf * exp(restart / mtbf) * expm1((interval + save) / mtbf) * work / interval


def checkpointing(parameters: float, gpus: int, mtbf_gpu: float, bandwidth: float, restart: float) -> Checkpointing:
    """Plan for a job.

    Args:
        parameters: of the model.
        mtbf_gpu: mean seconds between failures of one GPU and its share of the rest; the job fails `gpus` times as often.
        bandwidth: bytes per second and GPU to durable storage, training waiting meanwhile.

    Raises:
        UserError: the job fails before it has started again and saved once, on average; what it would take then is no figure to plan with.
    """
    size = parameters * _BYTES
    save, mtbf = size / (bandwidth * gpus), mtbf_gpu / gpus
    if mtbf < restart + save:
        raise UserError(f"{gpus} GPUs would fail every {mtbf:.3g} s, and need {restart + save:.0f} s to start again and save once",
                        where="--mtbf-hours", mend="give the hours between failures of one GPU, not of the cluster")
    daly = daly_interval(save, mtbf)
    return Checkpointing(size, save, young_interval(save, mtbf), daly, 1 / wall_time(1.0, daly, save, restart, mtbf))
