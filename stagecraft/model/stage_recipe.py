"""The recipe on one pipeline stage: megatron-core numbers the layers of every stage from 0, a recipe means those of the whole model."""

from __future__ import annotations

import re

import stagecraft.megatron_cpu  # noqa: F401

from megatron.core.quantization.quant_config import MatchContext, RecipeConfig

from stagecraft.model.classes import linear_layers
from stagecraft.model.config import Architecture
from stagecraft.model.precision import format_of, recipe

_LAYER = re.compile(r"^decoder\.layers\.(\d+)")


class StageRecipe(RecipeConfig):
    """A resolved recipe that knows how many layers lie on the stages before this one (`layer_offset`).

    Without it the last layers of a model cut in two would be looked for, and not found, among layers 0 to n/2 - 1 of each stage.
    """

    def __init__(self, architecture: Architecture, precision: str):
        self.architecture, self.precision, self.resolved = architecture, precision, recipe(architecture, precision)
        base = RecipeConfig.from_config_dict(self.resolved)
        super().__init__(base.matchers, base.configs)
        self.layer_offset = 0

    def formats(self, *, mtp: bool) -> set[str]:
        """The number formats that linear layers of the whole model are to multiply in."""
        found = (format_of(self.match(MatchContext(path, None))) for path in linear_layers(self.architecture, mtp=mtp))
        return {precision for precision in found if precision is not None}

    def in_the_model(self, path: str) -> str:
        """The name in the whole model of a module (or parameter) of this stage."""
        return _LAYER.sub(lambda found: f"decoder.layers.{int(found[1]) + self.layer_offset}", path)

    def match_to_config_key(self, operator_context: MatchContext) -> str | None:
        path = self.in_the_model(operator_context.module_path)
        return super().match_to_config_key(MatchContext(path, operator_context.layer_number))
