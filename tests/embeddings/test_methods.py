"""What is particular to one method."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pocketrec import embeddings
from pocketrec.embeddings.base import full_bytes, generator
from pocketrec.errors import UserError, conform
from pocketrec.kernels import universal_hash

CARDINALITIES = [100, 5000, 3]


def build(name, ratio, **knobs):
    return embeddings.build(name, cardinalities=CARDINALITIES, dim=16, ratio=ratio, seed=1, **knobs)


def test_universal_hash_is_exact():
    draw = generator(0)
    a = universal_hash.coefficients(draw, 1000)
    b = universal_hash.coefficients(draw, 1000)
    x = torch.randint(0, 2**62 - 1, (1000,), generator=draw)
    x[:3] = torch.tensor([0, 1, 2**62 - 1])
    a[3], x[3] = universal_hash.P - 1, 2**62 - 1
    exact = [(i * j + k) % universal_hash.P for i, j, k in zip(a.tolist(), x.tolist(), b.tolist(), strict=True)]
    assert universal_hash.add(universal_hash.multiply(a, x), b).tolist() == exact


def test_universal_hash_collides_as_often_as_chance():
    a, b = universal_hash.coefficients(generator(3), 2)
    slots = universal_hash.add(universal_hash.multiply(a, torch.arange(20_000)), b) % 1000
    pairs = sum(c * (c - 1) / 2 for c in torch.bincount(slots).tolist())
    assert pairs == pytest.approx(20_000**2 / 2 / 1000, rel=0.1)


def test_robe_is_as_large_as_the_budget_at_any_ratio():
    for ratio in (1, 7, 100, 1000):
        size = build("robe", ratio).config["size"]
        assert size == int(full_bytes(CARDINALITIES, 16) / ratio) // 4


@pytest.mark.parametrize("block_size", [1, 8, 16])
@pytest.mark.parametrize("sign", [False, True])
def test_robe_blocks_wrap_around(block_size, sign):
    module = build("robe", 4000, block_size=block_size, sign=sign)  # 20 floats: most blocks of 16 wrap
    ids = torch.tensor([[i, i, i % 3] for i in range(100)])
    torch.testing.assert_close(module(ids)[:, 1], module.materialize(1, slice(0, 100)), rtol=0, atol=0)
    elements = {round(v, 7) for v in module.array.weight.abs().tolist()}
    assert {round(v, 7) for v in module(ids).abs().flatten().tolist()} <= elements


def test_robe_refuses_a_block_that_does_not_divide_dim():
    with pytest.raises(ValueError, match="block_size must divide dim = 16, got 7"):
        build("robe", 10, block_size=7)


def test_robe_gives_equal_ids_of_two_tables_different_rows():
    row = build("robe", 10)(torch.tensor([[2, 2, 2]]))[0]
    assert not torch.equal(row[0], row[1])


def test_hashing_keeps_small_tables_whole():
    module = build("hashing", 10, threshold=100)
    assert module.config["rows"][0] == 100 and module.config["rows"][2] == 3
    rows = module(torch.tensor([[i, 0, 0] for i in range(100)]))[:, 0]
    assert torch.equal(rows, module.table.weight[:100])


def test_hashing_modulo_shares_by_remainder():
    module = build("hashing", 10, hash="modulo")
    size = module.config["rows"][1]
    rows = module(torch.tensor([[0, 7, 0], [0, 7 + size, 0]]))
    assert torch.equal(rows[0, 1], rows[1, 1])


def test_low_dim_without_projection_is_narrow():
    module = build("low_dim", 4, projection=False)
    assert module.out_dim == 4 and module(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3, 4)


def test_load_refuses_what_save_did_not_write(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"x\.safetensors"):
        embeddings.load(path)
    embeddings.save(build("robe", 10), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read"):
        embeddings.load(path)


def test_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'robe'"):
        embeddings.build("rope", cardinalities=[3], dim=2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("name = 'full'", r"two\.py: the method Two is called 'full' like that of pocketrec\.embeddings\.full"),
        ("", r"two\.py: the method Two has no `name`"),
        ("name = 3", r"two\.py: the method Two has no `name`"),
        ("name = 1 / 0", r"two\.py:4: cannot be imported: ZeroDivisionError"),
        ("name = (", r"two\.py: cannot be imported: SyntaxError: .*\(two\.py, line 4\)"),
    ],
)
def test_a_file_that_is_no_method_of_its_own_is_named(tmp_path, monkeypatch, body, message):
    code = f"from pocketrec.embeddings.base import Embedding\n\nclass Two(Embedding):\n    {body or 'pass'}\n"
    (tmp_path / "two.py").write_text(code)
    monkeypatch.setattr(embeddings, "__path__", [*embeddings.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "pocketrec.embeddings.two", raising=False)
    with pytest.raises(UserError, match=message):
        embeddings._discover()


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("dpq", {"bits": 9}, "bits be 1 to 8"),
        ("dpq", {"groups": 3}, "groups must divide dim = 16"),
        ("mgqe", {"head_share": 1.5}, "head_share must lie between"),
        ("hash_embeddings", {"weights": 0}, "must be at least 1"),
        ("hash_embeddings", {"hashes": 0}, "must be at least 1"),
        ("robe", {"init_scale": 0}, "init_scale must be above 0"),
        ("pss", {"init_scale": -1.0}, "init_scale must be above 0"),
        ("tt_rec", {"tables": 1, "threshold": 400}, "give `tables`"),
        ("tt_rec", {"tables": -1}, "give `tables`"),
        ("dhe", {"layers": 0}, "layers and hashes must be"),
        ("cce", {"clusterings": -1}, "between 0 and 255"),
        ("cce", {"clusterings": 256}, "between 0 and 255"),
    ],
)
def test_a_knob_without_a_meaning_is_refused(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        build(name, 4, **knobs)


def test_what_just_fits_is_found():
    tiny = embeddings.build("mixed_dim", cardinalities=[1, 1], dim=16, ratio=1)
    assert tiny.config["widths"] == [16, 16]
    rows = [1000] * 26
    budget_of_35_rows = embeddings.build("cafe", cardinalities=rows, dim=16, ratio=full_bytes(rows, 16) / (35 * 64))
    assert budget_of_35_rows.storage().inference_bytes <= 35 * 64


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("robe", {"block_size": "8"}, "embeddings: block_size of robe: expected int, found '8'"),
        ("robe", {"sign": 1}, "sign of robe: expected bool, found 1"),
        ("mixed_dim", {"alpha": float("nan")}, "alpha of mixed_dim: expected a finite number"),
        ("dpq", {"bits": 7.5}, "bits of dpq: expected int, found 7.5"),
    ],
)
def test_a_knob_of_another_type_is_named(name, knobs, message):
    with pytest.raises(UserError, match=message):
        embeddings.build(name, cardinalities=[1009, 211], dim=8, ratio=2, **knobs)


@pytest.mark.parametrize(
    ("hint", "given", "found"),
    [
        (int | str, "x", "x"),
        (None | int, 3, 3),
        (float | None, None, None),
        (list[int], (1, np.int64(2)), [1, 2]),
        (Sequence[int], (1, 2), (1, 2)),
        (Any, {}, {}),
        (int, 10**400, 10**400),
    ],
)
def test_hints_that_a_method_of_ones_own_may_use(hint, given, found):
    assert conform(given, hint, "here") == found


def test_a_knob_without_a_hint_is_taken_as_it_is():
    class Own(embeddings.Embedding):
        @classmethod
        def solve(cls, cardinalities, dim, budget_bytes, *, depth=3):
            return {}

    assert Own.knob("depth", "four", "here") == "four"


def test_numbers_of_numpy_are_numbers():
    e = embeddings.build("robe", cardinalities=[1009], dim=8, ratio=2, block_size=np.int64(4), init_scale=np.float32(1))
    assert e.config["block_size"] == 4 and type(e.config["block_size"]) is int and e.config["init_scale"] == 1.0
