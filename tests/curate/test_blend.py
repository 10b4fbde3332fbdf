"""The division of a phase: weights and caps hold for any amounts, and a weight for nothing is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.curate.blend import blend, entries
from components.curate.categories import CATEGORIES
from components.curate.corpus import LONG, TokenFile, write_blends
from components.curate.params import BlendParams, PhaseParams
from stagecraft.contract.errors import UserError

GROUPS = st.tuples(st.sampled_from(CATEGORIES), st.integers(1, 5))
AMOUNTS = st.dictionaries(GROUPS, st.integers(1, 10**9), min_size=1)


def phase(tokens: int = 1000, categories: dict[str, float] | None = None, tiers=(1, 1, 1, 1, 1)) -> PhaseParams:
    return PhaseParams(tokens=tokens, categories=categories or {}, tiers=list(tiers))


@given(AMOUNTS, st.integers(1, 10**10), st.floats(0.5, 10))
def test_without_weights_and_caps_everything_is_seen_equally_often(tokens, total, epochs):
    portions = blend("phase1", phase(total), tokens, epochs)
    assert sum(portion.weight for portion in portions.values()) == pytest.approx(1)
    whole = sum(tokens.values())
    for group, portion in portions.items():
        assert portion.weight == pytest.approx(tokens[group] / whole)
        assert portion.epochs == pytest.approx(total / whole)


@given(AMOUNTS, st.integers(1, 10**10), st.data())
def test_nothing_is_repeated_more_than_allowed_and_the_rest_keeps_its_ratios(tokens, total, data):
    weights = {group[0]: data.draw(st.floats(0.1, 100)) for group in tokens}
    portions = blend("phase1", phase(total, weights), tokens, 4)
    most = max(4, total / sum(tokens.values()))  # with all groups at the bound they are too small together, and all are seen as often
    assert all(portion.epochs <= most * (1 + 1e-9) for portion in portions.values())
    assert sum(portion.epochs * tokens[group] for group, portion in portions.items()) == pytest.approx(total)
    assert sum(weight for _, weight in entries(portions)) == pytest.approx(1)
    free = {group: portion for group, portion in portions.items() if portion.epochs < most * (1 - 1e-9)}
    per_category = {category: sum(count for group, count in tokens.items() if group[0] == category) for category in weights}
    scales = [portion.weight / (weights[group[0]] * tokens[group] / per_category[group[0]]) for group, portion in free.items()]
    assert not scales or max(scales) == pytest.approx(min(scales))


def test_a_small_category_is_capped_and_gives_its_rest_to_the_others():
    first, second, third = (CATEGORIES[0], 3), (CATEGORIES[1], 3), (CATEGORIES[2], 3)
    portions = blend("phase1", phase(1000, {first[0]: 1.0, second[0]: 1.0, third[0]: 2.0}), {first: 10, second: 10_000, third: 10_000}, 4)
    assert portions[first].weight == pytest.approx(0.04) and portions[first].epochs == pytest.approx(4)
    assert portions[second].weight == pytest.approx(0.32) and portions[third].weight == pytest.approx(0.64)


def test_a_share_of_all_leaves_nothing_of_weight_0(tmp_path):
    files = {name: TokenFile(None, None, counted=(1, 1000)) for name in (LONG, f"tokens/{CATEGORIES[0]}-tier3")}
    for share, wanted in ((1, [[LONG, 1]]), (0.25, [[LONG, 0.25], [f"tokens/{CATEGORIES[0]}-tier3", 0.75]]),
                          (0, [[f"tokens/{CATEGORIES[0]}-tier3", 1]])):
        write_blends(tmp_path, files, BlendParams(max_epochs=4, phase1=phase(), phase2=phase(), long_min_characters=1, long_share=share))
        assert json.loads((tmp_path / "blend.json").read_text())["long"] == wanted


def test_tiers_divide_a_category():
    category = CATEGORIES[0]
    portions = blend("phase2", phase(tiers=(0, 0, 1, 2, 3)), {(category, tier): 100 for tier in range(1, 6)}, 100)
    assert {group[1]: round(portion.weight, 3) for group, portion in portions.items()} == {3: 0.167, 4: 0.333, 5: 0.5}


@pytest.mark.parametrize("change, message", [
    ({"categories": {CATEGORIES[1]: 1.0}}, f"category `{CATEGORIES[1]}` has a weight but no document"),
    ({"tiers": (0, 0, 0, 0, 1)}, "no document is of a tier that counts"),
])
def test_a_weight_for_nothing_is_one_line(change, message):
    with pytest.raises(UserError) as caught:
        blend("phase1", phase(**change), {(CATEGORIES[0], 3): 100}, 4)
    assert message in str(caught.value) and "\n" not in str(caught.value)
