"""What Ctrl-C does to a rank other than the first: nothing, for the first one ends it; under torchrun what it does to any program."""

import runpy
import signal
import sys
from types import SimpleNamespace

import pytest

from tests.stages.commands import ROOT

WORK = {"pretrain": ("components.pretrain.train", "train"), "sft": ("components.sft.train", "train"),
        "rl": ("components.rl.run", "improve")}


@pytest.mark.parametrize("torchrun", [False, True])
@pytest.mark.parametrize("stage", WORK)
def test_ctrl_c_is_the_first_ranks(stage, torchrun, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    before, seen = signal.getsignal(signal.SIGINT), []
    module, name = WORK[stage]
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: lambda *_: seen.append(signal.getsignal(signal.SIGINT))}))
    monkeypatch.setitem(sys.modules, "stagecraft.checkpoint.canonical", SimpleNamespace(read_checkpoint=lambda _: (None, {})))
    monkeypatch.setattr(sys, "argv", ["worker", "work", "corpus", "model"])
    try:
        runpy.run_module(f"components.{stage}.worker", run_name="__main__")
        assert seen == [before if torchrun else signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGINT, before)
