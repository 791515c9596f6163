"""Quotient-remainder and its k-way form."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrec import embeddings
from pocketrec.embeddings import Infeasible
from pocketrec.embeddings.base import full_bytes

KAGGLE = [1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10,
          5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572]  # fmt: skip


def build(ratio, cardinalities=(7, 1000, 30_000), **knobs):
    return embeddings.build("quotient_remainder", cardinalities=cardinalities, dim=12, ratio=ratio, seed=1, **knobs)


def test_four_collisions_on_criteo_kaggle_take_a_quarter():
    bases = [4 if n > 200 else 1 for n in KAGGLE]
    config = {"bases": bases, "parts": 2, "operation": "multiply", "partition": "digits", "init": "one"}
    kept = embeddings.inference_bytes("quotient_remainder", KAGGLE, 16, config)
    rows = sum(-(-n // 4) + 4 if n > 200 else n for n in KAGGLE)
    assert kept == 64 * rows and full_bytes(KAGGLE, 16) / kept == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize(("parts", "least", "most"), [(2, 1170, 1180), (3, 8_950, 9_050), (4, 20_900, 21_100)])
def test_the_largest_ratio_grows_with_the_parts(parts, least, most):
    kind = embeddings.METHODS["quotient_remainder"]
    kind.solve(KAGGLE, 16, full_bytes(KAGGLE, 16) / least, parts=parts)
    with pytest.raises(Infeasible, match="more parts take less"):
        kind.solve(KAGGLE, 16, full_bytes(KAGGLE, 16) / most, parts=parts)


@pytest.mark.parametrize("operation", ["multiply", "add", "concat"])
@pytest.mark.parametrize("partition", ["digits", "remainders"])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_lookup_is_the_composition_of_the_digits(operation, partition, parts):
    module = build(20, operation=operation, partition=partition, parts=parts).double()
    ids = torch.tensor([[i % 7, i, 29 * i + 5] for i in range(1000)])
    oracle = torch.stack([module.materialize(f)[ids[:, f]] for f in range(3)], 1)
    torch.testing.assert_close(module(ids), oracle, rtol=1e-12, atol=0)
    assert len(oracle[:, 2].unique(dim=0)) == 1000  # no two ids have all digits in common


def test_an_explicit_id():
    module = build(30)
    base, n = module.config["bases"][1], 1000
    quotient, remainder = module.factors.weight[: -(-n // base)], module.factors.weight[-(-n // base) :]
    expected = quotient[837 // base] * remainder[837 % base]
    torch.testing.assert_close(module(torch.tensor([[0, 837, 0]]))[0, 1], expected)


def test_an_explicit_id_by_remainders():
    module = build(30, partition="remainders", operation="concat")
    first, second = module.config["bases"][1], module.config["bases"][1] - 1
    table = module.factors.weight
    expected = torch.cat([table[837 % first], table[first + 837 % second]])
    torch.testing.assert_close(module(torch.tensor([[0, 837, 0]]))[0, 1], expected)


@settings(deadline=None)
@given(n=st.integers(2, 10**7), ratio=st.floats(1.5, 300), parts=st.integers(2, 4))
def test_remainders_tell_all_ids_apart_and_share_the_rows_evenly(n, ratio, parts):
    kind = embeddings.METHODS["quotient_remainder"]
    try:
        config = kind.solve([n], 12, 48 * n / ratio, parts=parts, partition="remainders")
    except Infeasible:
        return
    if config["bases"] != [1]:
        module = kind([n], 12, seed=0, **config)
        rows = module.digits[0].tolist()
        assert math.lcm(*rows) >= n and 48 * sum(rows) <= 48 * n / ratio


def test_small_tables_are_whole_and_all_are_at_ratio_one(tmp_path):
    assert build(20).config["bases"][0] == 1
    assert build(1).config["bases"] == [1, 1, 1]
    for module in (build(1), build(20, cardinalities=[30_000, 20_000])):  # nothing composed; nothing whole
        embeddings.save(module.deploy("int8"), tmp_path / "e.safetensors")
        assert embeddings.load(tmp_path / "e.safetensors").quantize == "int8"


def test_initial_values():
    n = 30_000
    published = build(50, init="published").factors.weight
    assert published.min() >= 1 / n**0.5 and 0.9 < published.max() <= 1
    assert build(50, init="symmetric").factors.weight.abs().max() <= 1 / 1000**0.5
    rows = build(50).materialize(2)
    assert rows.std().item() == pytest.approx(1 / (3 * n) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"operation": "divide"}, "operation must be"),
        ({"init": "zero"}, "got 'multiply' and 'zero'"),
        ({"partition": "primes"}, "partition must be"),
        ({"parts": 1}, "parts must be at least 2"),
        ({"parts": 5, "operation": "concat"}, "divide dim"),
    ],
)
def test_wrong_knobs_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        build(20, **knobs)
