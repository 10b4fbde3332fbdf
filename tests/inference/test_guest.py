"""An engine beside a Megatron trainer in one process: both work, and the engine leaves as it came."""

import subprocess
import sys

SCRIPT = """
import sys
import torch
import stagecraft.megatron_cpu
from stagecraft.engine import parallel
parallel.initialize(7)
torch.set_num_threads(2)
from stagecraft.model.build import build_model, transformer_config
from stagecraft.model.config import Architecture
from tests.checkpoints import ARCHITECTURE, PATTERN
shapes = {name: ARCHITECTURE[name] for name in Architecture.__dataclass_fields__ if name in ARCHITECTURE}
architecture = Architecture(**{**shapes, "hybrid_override_pattern": PATTERN})
model = build_model(architecture, transformer_config(architecture), 64)
tokens = torch.arange(5, 37)[None]
def forward():
    return model(tokens, torch.arange(32)[None], None).float()
before, state = forward(), torch.get_rng_state()
from pathlib import Path
from stagecraft.inference.engine import Engine
answers = []
for _ in range(2):
    with Engine(Path(sys.argv[1]), max_model_len=64, max_num_seqs=8) as engine:
        answers.append(engine.generate([[5, 77], [9, 300, 12]], temperature=0, max_tokens=8))
        assert torch.get_num_threads() == 2
        assert torch.equal(forward(), before)
    forward().sum().backward()
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    assert total == 1
assert answers[0] == answers[1]
torch.set_num_threads(1)
assert torch.get_num_threads() == 1
assert torch.equal(torch.get_rng_state(), state)
parallel.shutdown()
print(*[token for group in answers[0] for token in group[0].token_ids])
"""


def test_an_engine_in_a_trainers_process(engine, checkpoint):
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(checkpoint)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = engine.generate([[5, 77], [9, 300, 12]], temperature=0, max_tokens=8)
    assert done.stdout.split() == [str(token) for group in alone for token in group[0].token_ids]
