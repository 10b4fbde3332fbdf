"""A checkpoint's configuration: whoever reads it, what is wrong with it is one line."""

import pytest

from stagecraft.checkpoint.canonical import read_architecture
from stagecraft.contract.errors import UserError


@pytest.mark.parametrize(("content", "said"), [
    (None, "not a checkpoint: no config.json"), ("{", "unreadable config.json: Expecting"), ("[]", "of architecture None"),
    ('{"model_type": "llama"}', "of architecture 'llama'"), ('{"model_type": "nemotron_h"}', "not an architecture of ours"),
])
def test_a_configuration_that_is_none_of_ours(tmp_path, content, said):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_architecture(tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
