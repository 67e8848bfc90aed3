"""``docs/your-own-rule.md`` says what holds, and ``rule_faults`` finds what is broken in a rule."""

import math
import random
import re

import numpy as np
import pytest
import torch

from tests.own_network import RULE_PAGE, blocks_of, run_blocks
from truly_sparse import CHT, MEST, GrowRule, SRigL, gradient_grow, random_grow, rule_faults
from truly_sparse.rules import GROW_RULES, over_all_ranks


def size_of(layer):
    return math.prod(layer.dense_shape)


def inactive(layer, active):
    places = torch.arange(size_of(layer))
    return places[~torch.isin(places, active)]


# ------------------------------------------------------------------------------------------ the page


def test_the_page_is_short_and_all_its_code_is_run():
    text = RULE_PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80 and list(blocks_of(RULE_PAGE)) == ["rule", "check", "train"]
    assert text.count("```python") == 3 and "tutorial_lib" not in text


def test_the_rule_of_the_page_is_sound_and_trains():
    page = run_blocks("rule", "check", "train", page=RULE_PAGE)
    assert page["faults"] == [] and page["driver"].rewirings == 6 and page["loss"] < 1.0


# ------------------------------------------------------------------------------------------ sound rules


@pytest.mark.parametrize("grow", [*GROW_RULES, SRigL().grow])
def test_the_named_rules_are_sound(grow):
    assert rule_faults(grow) == []


@pytest.mark.parametrize("recipe", [MEST(), CHT()], ids=["MEST", "CHT"])
def test_the_rules_of_recipes_are_sound(recipe):
    assert rule_faults(recipe.grow, recipe.prune) == []


def test_the_check_leaves_the_global_random_states_alone():
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    rule_faults()
    drawn = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    assert drawn == (torch.rand(1), np.random.rand(), random.random())


# ------------------------------------------------------------------------------------------ broken growth


def one_too_few(layer, active, count, generator):
    return random_grow(active, size_of(layer), count - 1, generator)


def the_first_again_and_again(layer, active, count, generator):
    return inactive(layer, active)[:1].expand(count)


def active_ones(layer, active, count, generator):
    return torch.arange(count)


def beyond_the_end(layer, active, count, generator):
    return torch.arange(count) + size_of(layer)


def in_reverse(layer, active, count, generator):
    return random_grow(active, size_of(layer), count, generator).flip(0)


def no_tensor(layer, active, count, generator):
    return list(range(count))


def by_torchs_generator(layer, active, count, generator):
    return random_grow(active, size_of(layer), count, torch.default_generator)


def by_numpys_generator(layer, active, count, generator):
    return inactive(layer, active)[np.sort(np.random.permutation(size_of(layer) - len(active))[:count])]


def by_a_new_generator(layer, active, count, generator):
    places = np.random.default_rng().permutation(size_of(layer) - len(active))[:count]
    return inactive(layer, active)[np.sort(places)]


def spoils_its_argument(layer, active, count, generator):
    grown = random_grow(active.clone(), size_of(layer), count, generator)
    active.zero_()
    return grown


def spoils_the_layer(layer, active, count, generator):
    layer.weight_parameter.data.zero_()
    return random_grow(active, size_of(layer), count, generator)


def with_made_up_gradients(layer, active, count, generator):
    return gradient_grow((over_all_ranks(rows).nan_to_num() for rows in layer.gradient_rows()), active, count)


def with_the_whole_gradient(layer, active, count, generator):
    return gradient_grow([torch.cat(list(layer.gradient_rows()))], active, count)


def with_a_dense_array(layer, active, count, generator):
    order = np.zeros(size_of(layer))
    order[active.numpy()] = 1
    return torch.from_numpy(np.flatnonzero(order == 0)[:count])


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (one_too_few, r"growth of \d+: it returns \d+ connections"),
        (the_first_again_and_again, "are duplicates"),
        (active_ones, "are active already"),
        (beyond_the_end, "out of range"),
        (in_reverse, "not sorted"),
        (no_tensor, "it returns list; return flat indices"),
        (by_torchs_generator, "global random state"),
        (by_numpys_generator, "global random state"),
        (by_a_new_generator, "two calls with equal generators differ"),
        (spoils_its_argument, "changes the list of active connections"),
        (spoils_the_layer, "changes the layer"),
        (with_made_up_gradients, "gradients that are not numbers"),
        (with_the_whole_gradient, "growth: it makes a tensor of 16,777,216 numbers"),
        (with_a_dense_array, r"growth: it makes arrays of \d+ MB"),
        (lambda layer, active, count: active, "raises TypeError"),
    ],
)
def test_what_is_broken_in_growth_is_said(rule, fault):
    assert re.search(fault, "\n".join(rule_faults(GrowRule(rule))))


# ------------------------------------------------------------------------------------------ broken scores


@pytest.mark.parametrize(
    ("score", "fault"),
    [
        (lambda layer: layer.active_values()[1:], "return one score each"),
        (lambda layer: layer.active_values() / 0, "not finite"),
        (lambda layer: layer.active_values().tolist(), "it returns list"),
        (lambda layer: torch.rand(len(layer.active())), "global random state"),
        (MEST().prune, "no gradient was recorded"),  # random growth records none
        (lambda layer: torch.zeros(size_of(layer))[layer.active()], "prune score: it makes a tensor of 16,777,216"),
    ],
)
def test_what_is_broken_in_a_score_is_said(score, fault):
    assert fault in "\n".join(rule_faults(prune=score))
