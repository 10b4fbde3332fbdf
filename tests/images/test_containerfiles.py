"""What every image keeps to: a pinned base, no root at the end, only what a stage needs inside; and hadolint has nothing to say."""

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from stagecraft.contract.images import image
from stagecraft.contract.stages import STAGES

ROOT = Path(__file__).parents[2]
FILES = [*sorted(ROOT.glob("components/Containerfile*")), *sorted(ROOT.glob("components/*/Containerfile")),
         ROOT / "k8s/mlflow/Containerfile"]
BASES = {"base", "compiler"}

Instruction = tuple[str, str]


def instructions(path: Path) -> list[Instruction]:
    """The instructions of a Containerfile, continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word.upper(), " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in text.splitlines())]


@pytest.fixture(params=FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def path(request) -> Path:
    return request.param


def stages_of(path: Path) -> list[list[Instruction]]:
    """The parts of a Containerfile, each from its FROM to the next."""
    parts: list[list[Instruction]] = []
    for instruction in instructions(path):
        if instruction[0] == "FROM":
            parts.append([])
        if parts:
            parts[-1].append(instruction)
    return parts


def test_every_stage_has_a_file():
    assert {path.parent.name for path in FILES if path.name == "Containerfile"} == {*STAGES, "components", "mlflow"}


def test_the_base_is_pinned(path):
    """By digest where it comes from a registry; a stage builds on a base of ours under the names that the pipelines use."""
    arguments = dict(rest.partition("=")[::2] for word, rest in instructions(path) if word == "ARG")
    ours = {part[0][1].split(" AS ")[1] for part in stages_of(path) if " AS " in part[0][1]}
    for part in stages_of(path):
        source = part[0][1].split(" AS ")[0]
        if source in ours:
            continue
        source = arguments[source[1:]] if source.startswith("$") else source
        if path.parent.name in STAGES:
            assert source in {image(base) for base in BASES}
        else:
            assert re.fullmatch(r"docker\.io/[a-z/]+:[a-z0-9.-]*\d[a-z0-9.-]*@sha256:[0-9a-f]{64}", source), source
            assert "latest" not in source


def test_it_ends_as_somebody_else_than_root(path):
    """Every part that becomes an image, or its base, ends unprivileged; whatever needs root comes before."""
    for part in stages_of(path):
        users = [rest for word, rest in part if word == "USER"]
        becomes_an_image = not part[0][1].endswith(" AS build")
        if becomes_an_image and path.parent.name not in STAGES:
            assert users
        assert not users or re.fullmatch(r"1000(:1000)?", users[-1]), users


def test_nothing_comes_from_an_address_and_nothing_is_named_twice(path):
    text = path.read_text()
    for word, rest in instructions(path):
        assert word != "ADD"
        assert not re.search(r"\b(curl|wget)\b|https?://", rest), rest
    assert not re.search(r"index-url|find-links|PASSWORD|TOKEN", text)


def test_it_says_what_it_is(path):
    titles = [re.search(r'title="([\w-]+)"', rest)[1] for word, rest in instructions(path) if word == "LABEL"]
    assert all(title.startswith("stagecraft-") for title in titles)
    if path.parent.name in STAGES:
        assert titles == [f"stagecraft-{path.parent.name}"]
    assert titles


def test_code_is_the_last_layer():
    """A change of code must not rebuild an environment: the bases copy none, the stages copy it last."""
    for path in FILES:
        copied = [rest for word, rest in instructions(path) if word == "COPY" and not rest.startswith("--from=")]
        if path.parent.name in STAGES:
            assert instructions(path)[-1] == ("COPY", ". /opt/stagecraft/")
        elif path.parent.name == "components":
            assert all(re.fullmatch(r"(requirements/|pyproject.toml setup.py stagecraft_startup.pth).*", rest) for rest in copied), copied


def test_only_what_is_named_goes_in():
    """.dockerignore lets in what a stage reads and refuses the rest, however it is called."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = [line[1:] for line in lines if line.startswith("!")]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    inside = [name for name in tracked if any(name == entry or name.startswith(f"{entry}/") for entry in allowed)]
    for needed in ("stagecraft/contract/kfp_task.py", "components/sft/stage.py", "pipelines/full.py", "dvc.yaml", "params.yaml",
                   ".dvc/config", "requirements/laptop.lock", "params/super-120b.yaml"):
        assert needed in inside
    for refused in (".git", ".venv", ".work", "artifacts", "mlflow.db", ".dvc/cache", ".dvc/config.local", ".env", "tests", "k8s"):
        assert not any(fnmatch(refused, entry) or refused.startswith(f"{entry}/") for entry in allowed), refused


def test_hadolint_has_nothing_to_say():
    tool = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert tool, "hadolint is in requirements/development.lock: make setup"
    done = subprocess.run([tool, *map(str, FILES)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr
