"""A choice becomes steps that the service takes, each tensor named once and by its name alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.patterns import Targeted
from app.recipe import Quantize, matcher, parse_recipe
from app.strict import validate
from worker.search.options import Option, options
from worker.search.resolved import pattern, resolved


@dataclass(frozen=True)
class Named:
    name: str
    names: list[str]
    count: int = 100


@given(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=40), st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=40))
def test_a_pattern_matches_its_name_alone(name, other):
    match = matcher(validate(Targeted, {"targets": [pattern(name)]}))
    assert match(name) and (match(other) == (name == other))


@pytest.mark.parametrize("output", ["packed", "compressed-tensors"])
def test_every_option_is_an_ordinary_recipe(output):
    found = options(output, True)
    found += [o.twin for o in found if o.has_twin]
    chosen = [(Named(f"g{i}", [f"layers.{i}.q.weight", f"layers.{i}.k.weight"]), option, 0) for i, option in enumerate(found)]
    recipe = parse_recipe(resolved(chosen, output))
    for group, option, _ in chosen:
        for name in group.names:
            own = [s for s in recipe.steps if matcher(s)(name)]
            assert [s.method for s in own] == [s.method for s in option.steps] + (["lossless"] if output == "packed" else [])
            for s, wanted in zip(own, option.steps):
                assert s.model_dump(exclude={"targets"}) == wanted.model_dump(exclude={"targets"})


def test_all_rounding_of_integers_can_be_learned():
    found = [o for o in options("packed", True) if o.uniform] + [o.twin for o in options("compressed-tensors", False)]
    chosen = [(Named(f"g{i}", [f"layers.{i}.q.weight"]), option, 0) for i, option in enumerate(found)]
    steps = parse_recipe(resolved(chosen, "packed", learned=True)).step(Quantize)
    assert {s.type for s in steps if s.learns} == {"int"} and all(s.learns or s.type == "nf" for s in steps) and {s.num_bits for s in steps} == set(range(2, 9))


def test_groups_with_one_option_share_a_step():
    option = options("packed", False)[0]
    steps = resolved([(Named("a", ["a"]), option, 0), (Named("b", ["b"]), option, 0)], "packed")["steps"]
    assert [s["targets"] for s in steps] == [["a", "b"], ["a", "b"]]


def test_codebooks_under_a_price_keep_their_bits():
    steps = resolved([(Named("a", ["a"]), Option((), 0.5), 300), (Named("b", ["b"]), Option((), 0.5), 420)], "packed")["steps"]
    assert [(s.get("avg_bits"), s["targets"]) for s in steps] == [(3.0, ["a"]), (4.2, ["b"]), (None, ["a", "b"])]


def test_very_many_groups_share_steps_by_price():
    chosen = [(Named(f"g{i}", [f"g{i}"]), Option((), 0.5 + i % 2), 300 + i % 2) for i in range(2500)]
    recipe = parse_recipe(resolved(chosen, "packed"))
    widths = {t: s.avg_bits for s in recipe.steps if s.method == "quantize" for t in s.targets}
    assert len(widths) == 2500 and set(widths.values()) == {3.0, 3.01} and all(len(s.targets) <= 1000 for s in recipe.steps)
