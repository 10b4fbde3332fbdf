"""Parameters of the rl stage."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from stagecraft.contract.address import with_host
from stagecraft.contract.bounded import AboveZero, Count, NonNegative, Positive, Seed, Share
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import params, parse
from stagecraft.endpoint import EndpointParams
from stagecraft.engine.layout import Layout
from stagecraft.model.config import Architecture


@params
class Generators:
    """Who generates: so many workers, each with a share of a step's prompts, as local processes or as actors of Ray.

    `tensor` GPUs, where there are some, or processes divide the model of each.
    """

    launcher: Literal["process", "ray"]
    count: Positive
    tensor: Positive


@params
class Curriculum:
    """Which prompts are trained on, and in which order, by what the model that the stage begins with makes of them."""

    samples: Count
    drop_above: Share


@params
class EnvironmentServer:
    """A resource server that plays an environment, and the rows that it knows: a JSONL file in NeMo Gym's format, or "": drawn here."""

    url: Annotated[str, Field(pattern=r"^https?://\S+$"), AfterValidator(with_host)]
    rows: str
    turns: Positive


@params
class Healing:
    """Training the MTP block on what the policy said in the last `rollouts` steps; `heldout` prompts to measure it on. 0 steps: none."""

    steps: Count
    lr: AboveZero
    depths: Positive
    rollouts: Positive
    heldout: Positive


@params
class Preferences(EndpointParams):
    """RLHF: rewards from a generative reward model that compares answers by a principle, on an OpenAI endpoint or one trained here."""

    enabled: bool
    principle: str
    length_penalty: Share
    comparisons: Positive
    steps: Positive
    lr: AboveZero
    heldout: Positive

    def __post_init__(self) -> None:
        if self.enabled and bool(self.url) != bool(self.model):
            raise ValueError("url and model name an endpoint together; leave both empty for a reward model trained here")


@params
class Stage:
    """GRPO. Sizes in prompts, completions, tokens or steps; learning rates per step."""

    PLACEMENT: ClassVar = ("layout", "checkpoint_every", "hang_seconds", "url")  # the last: of a server, which its environment names

    seed: Seed
    layout: Layout
    dtype: Literal["float32", "bfloat16"]
    threads: Positive
    staleness: Annotated[int, Field(ge=0, le=1)]
    in_flight: bool
    generators: Generators
    prompts_per_step: Positive
    generations_per_prompt: Annotated[int, Field(ge=2)]
    max_prompt_tokens: Positive
    max_new_tokens: Positive
    temperature: AboveZero
    mixture: dict[str, NonNegative]
    environments: dict[str, AboveZero]
    environment_prompts: Positive
    environment_servers: dict[str, EnvironmentServer]
    curriculum: Curriculum
    steps: Positive
    lr: AboveZero
    warmup_steps: Count
    decay_share: Share
    clip: AboveZero
    ratio_clip_low: Annotated[float, Field(gt=0, lt=1)]
    ratio_clip_high: AboveZero
    importance_limit: Annotated[float, Field(ge=1)]
    mismatch_limit: AboveZero
    kl: NonNegative
    malformed_penalty: NonNegative
    overlong_filter: bool
    pack_tokens: Positive
    checkpoint_every: Positive
    hang_seconds: Count
    rollouts_kept: Count
    preferences: Preferences
    healing: Healing

    def __post_init__(self) -> None:
        if self.pack_tokens < self.max_prompt_tokens + self.max_new_tokens:
            raise ValueError(f"pack_tokens {self.pack_tokens} is less than max_prompt_tokens + max_new_tokens = "
                             f"{self.max_prompt_tokens + self.max_new_tokens}")
        if self.generators.count > self.prompts_per_step:
            raise ValueError(f"{self.generators.count} generators have no share each in {self.prompts_per_step} prompts_per_step")
        if unasked := sorted(set(self.environment_servers) - set(self.environments)):
            raise ValueError(f"environment_servers has {unasked[0]!r}, which environments does not name")
        if self.preferences.enabled and self.environments:
            raise ValueError("preferences compare single answers: leave environments empty")
        if self.in_flight and not self.staleness:
            raise ValueError("in_flight needs staleness 1: with 0 nothing is generated while weights change")


@params
class Params(Stage):
    """Stages in their order, each with what it says differently; each goes on from the policy of the one before, with its own optimizer.

    Under a group such as `preferences` a stage gives the keys that differ. Its seed, if it gives none, is `seed` + its place.
    `processes` are the trainer's ranks on a laptop.
    """

    PLACEMENT: ClassVar = ("processes", *Stage.PLACEMENT)

    processes: Positive
    stages: dict[str, dict[str, Any]]

    @property
    def parts(self) -> dict[str, Stage]:
        """The parameters of every stage, by name."""
        own = asdict(self)
        del own["stages"], own["processes"]
        found = {}
        for number, (name, changes) in enumerate(self.stages.items()):
            merged = {**own, "seed": self.seed + number}
            for key, value in changes.items():
                group = isinstance(value, dict) and is_dataclass(getattr(self, key, None))
                merged[key] = {**own[key], **value} if group else value
            found[name] = parse(Stage, merged, f"rl.stages.{name}")
        return found

    def check(self, architecture: Architecture, ranks: int) -> None:
        """Refuse what the trainer's ranks cannot be divided into, or the model, in any of the stages.

        Raises:
            UserError: names the stage.
        """
        for name, part in self.parts.items():
            where = f"rl.stages.{name}.layout"
            part.layout.data(ranks, where)
            try:
                part.layout.check(architecture, part.pack_tokens, "adamw")
            except ValueError as error:
                raise UserError(str(error), where=where, mend="choose another layout") from None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages:
            raise ValueError("stages is empty: name one, such as {rlvr: {}}")
        for name, changes in self.stages.items():
            if not name.isidentifier():
                raise ValueError(f"stages has the name {name!r}: letters, digits and _ name its directory and figures")
            if "healing" in changes:
                raise ValueError(f"stages.{name} has healing, which comes once, after the last stage")
        judged = [name for name, part in self.parts.items() if part.preferences.enabled and not part.preferences.url]
        if len(judged) > 1:
            raise ValueError(f"stages {judged[0]} and {judged[1]} both train a reward model: name an endpoint in all but one")
