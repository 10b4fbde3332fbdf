"""Megatron's model exported to the canonical checkpoint gives the logits of transformers' NemotronHForCausalLM, and comes back."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stagecraft.checkpoint.canonical import read_checkpoint, write_checkpoint
from stagecraft.checkpoint.convert import from_hf
from stagecraft.contract.errors import UserError
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import architecture, tiny
from tests.checkpoints import tiny_tokenizer


def trainer_of(shapes, **options):
    trainer = Trainer(shapes, Optimization(lr=1e-3, steps=10), max_sequence_length=128, **options)
    with torch.no_grad():  # away from the initial values, so that a forgotten tensor shows
        for name, parameter in trainer.module.named_parameters():
            parameter.mul_(3) if parameter.dim() > 1 and "embedding" not in name else parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in trainer.module.named_buffers():
            if name.endswith("expert_bias"):
                buffer.normal_(0, 0.1)
    return trainer


@pytest.fixture
def tokenizer_directory(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("shapes", [architecture(), tiny(vocab_size=2048, hybrid_override_pattern="EM*ME"),
                                    tiny(vocab_size=2048, moe_latent_size=None), tiny(vocab_size=2048, num_experts_per_tok=1),
                                    tiny(vocab_size=2048, norm_eps=1e-2)],
                         ids=["laptop", "tiny", "plain experts", "one expert a token", "another epsilon"])
def test_logits_equal_transformers(tmp_path, tokenizer_directory, shapes):
    trainer = trainer_of(shapes, mtp_depths=2)
    write_checkpoint(tmp_path / "model", shapes, trainer.weights().items(), tokenizer_directory)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids = torch.randint(0, 2048, (2, 100))
    trainer.module.eval()
    with torch.no_grad():
        ours = trainer.module(ids, torch.zeros_like(ids), None)
        theirs = oracle(input_ids=ids).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path, tokenizer_directory):
    shapes = tiny(vocab_size=2048)
    trainer = trainer_of(shapes, mtp_depths=1)
    write_checkpoint(tmp_path / "model", shapes, trainer.weights().items(), tokenizer_directory)
    read_shapes, tensors = read_checkpoint(tmp_path / "model")
    assert read_shapes == shapes
    state = {name: tensor for name, tensor in trainer.module.state_dict().items() if tensor is not None}
    found = from_hf(shapes, tensors)
    assert found.keys() == state.keys()
    everything = (slice(None),)  # as a rank takes its share, of experts that are put together only then
    assert all(torch.equal(found[name][everything], state[name]) for name in state)


def test_of_a_checkpoint_that_gives_its_tokenizer_nothing_else_is_copied(tmp_path, tokenizer_directory, monkeypatch):
    """Its weights, hundreds of gigabytes, would only be written over."""
    shapes, copied = tiny(vocab_size=2048), []
    write_checkpoint(tmp_path / "one", shapes, trainer_of(shapes, mtp_depths=1).weights().items(), tokenizer_directory)
    monkeypatch.setattr("shutil.copyfile", lambda source, target: copied.append(target.name) or target.write_bytes(source.read_bytes()))
    write_checkpoint(tmp_path / "two", shapes, trainer_of(shapes, mtp_depths=1).weights().items(), tmp_path / "one")
    assert copied == sorted(path.name for path in tokenizer_directory.iterdir())


def test_tensors_are_written_from_where_they_lie(tmp_path, tokenizer_directory, monkeypatch):
    """Copies of a large model's are hundreds of gigabytes of host memory."""
    shapes, written = tiny(vocab_size=2048), {}
    tensors = trainer_of(shapes, mtp_depths=1).weights()
    monkeypatch.setattr("stagecraft.checkpoint.canonical.save_file", lambda state, *_, **__: written.update(state))
    write_checkpoint(tmp_path / "model", shapes, tensors.items(), tokenizer_directory)
    assert written.keys() == tensors.keys()
    assert all(tensor.data_ptr() == written[name].data_ptr() for name, tensor in tensors.items())


@pytest.mark.parametrize("lost", ["lm_head.weight", ".mixer.experts.3.up_proj.weight", "mtp.layers.0.norm.weight"])
def test_missing_tensors_are_one_line(tmp_path, tokenizer_directory, lost):
    shapes = tiny(vocab_size=2048)
    tensors = trainer_of(shapes, mtp_depths=1).weights()
    name = next(name for name in tensors if name.endswith(lost))
    del tensors[name]
    write_checkpoint(tmp_path / "model", shapes, tensors.items(), tokenizer_directory)
    with pytest.raises(UserError, match=f"the weights lack {name}"):
        read_checkpoint(tmp_path / "model")


def test_a_checkpoint_without_a_block_for_mtp_lacks_nothing(tmp_path, tokenizer_directory):
    shapes = tiny(vocab_size=2048)
    write_checkpoint(tmp_path / "model", shapes, trainer_of(shapes, mtp_depths=0).weights().items(), tokenizer_directory)
    assert "lm_head.weight" in read_checkpoint(tmp_path / "model")[1]


def test_the_checkpoint_has_the_names_vllm_reads_for_mtp(tmp_path, tokenizer_directory):
    shapes = tiny(vocab_size=2048)
    write_checkpoint(tmp_path / "model", shapes, trainer_of(shapes, mtp_depths=2).weights().items(), tokenizer_directory)
    names = set(load_file(tmp_path / "model" / "model.safetensors"))
    assert {"mtp.layers.0.eh_proj.weight", "mtp.layers.1.final_layernorm.weight", "mtp.layers.1.mixer.experts.7.up_proj.weight"} <= names
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["mtp_hybrid_override_pattern"] == "*E" and config["time_step_min"] < 1e-9 and config["eos_token_id"] == 4
