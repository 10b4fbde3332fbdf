"""The source's model: there is room for it, for what an earlier one left is gone."""

import gc
import weakref

import torch

from components.quantize.source import load_model
from tests.checkpoints import tiny_checkpoint


def test_a_model_that_refers_back_to_itself_is_gone_before_the_next_is_loaded(tmp_path, monkeypatch):
    """As those that ModelOpt has searched do; on a GPU the next one would have to fit beside it."""
    tiny_checkpoint(tmp_path)
    model = load_model(tmp_path)
    model.itself = [model]
    left, here = weakref.ref(model), []

    def load(*_, **__):
        here.append(left())
        return torch.nn.Linear(1, 1), {"missing_keys": []}

    monkeypatch.setattr("transformers.NemotronHForCausalLM.from_pretrained", load)
    del model
    gc.disable()
    try:
        load_model(tmp_path)
    finally:
        gc.enable()
    assert here == [None]
