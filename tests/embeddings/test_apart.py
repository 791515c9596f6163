"""Tables apart, where the contract that all methods keep says nothing: who gets how much, and what is not shared."""

import pytest
import torch

from pocketrec import embeddings
from pocketrec.embeddings.apart import Apart

TABLES = [6040, 3670]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(64, [32, 32]), (8000, [4330, 3670]), (9709.9, [6040, 3670])],
    ids=["equal", "one whole", "both whole"],
)
def test_equal_shares_but_no_more_than_a_table_takes_whole(rows, expected):
    config = embeddings.solve("hashing", TABLES, 32, 9710 / (rows + 0.1), apart=True)
    assert [part["rows"] for part in config["parts"]] == [[n] for n in expected]


def test_what_small_tables_leave_goes_to_all_others():
    config = embeddings.solve("robe", [3, 100, 50, 1000], 1, 1153 / 123, apart=True)
    assert [part["size"] for part in config["parts"]] == [3, 40, 40, 40]


def test_it_is_no_method():
    assert Apart.name not in embeddings.available()


@pytest.mark.parametrize("method", [m for m in embeddings.available() if m not in ("full", "mlet")])
def test_every_table_is_what_it_would_be_alone(method):
    both = embeddings.build(method, cardinalities=TABLES, dim=32, ratio=4, seed=3, apart=True)
    ids = torch.stack([torch.arange(200) * 30, torch.arange(200) * 18], 1)
    for t, n in enumerate(TABLES):
        alone = embeddings.METHODS[method]([n], 32, seed=3 * 2 + t, **both.config["parts"][t])
        assert torch.equal(both(ids)[:, t : t + 1], alone(ids[:, t : t + 1]))


def test_tables_of_one_size_start_differently():
    module = embeddings.build("robe", cardinalities=[500, 500], dim=16, ratio=10, apart=True)
    assert not torch.equal(module.materialize(0), module.materialize(1))


def test_what_one_table_cannot_have_names_it():
    with pytest.raises(embeddings.Infeasible, match=r"table 0 of 100 rows, apart from the others: quotient_remainder"):
        embeddings.build("quotient_remainder", cardinalities=[100, 3670], dim=32, ratio=100, apart=True)


@pytest.mark.parametrize(("method", "ratio", "knobs"), [("low_dim", 2, {"projection": False}), ("mlet", 4, {})])
def test_narrower_tables_end_in_zeros(method, ratio, knobs):
    module = embeddings.build(method, cardinalities=TABLES, dim=32, ratio=ratio, apart=True, **knobs)
    widths = [part.out_dim for part in module.parts]
    rows = module(torch.zeros(3, len(TABLES), dtype=torch.long))
    assert min(widths) < max(widths) == module.out_dim == rows.shape[2]
    for t, width in enumerate(widths):
        assert rows[:, t, :width].any() and not rows[:, t, width:].any()
        assert torch.equal(module.materialize(t, slice(0, 1)), rows[:1, t])


def test_pruned_tables_apart_keep_their_zeros():
    assert embeddings.build("pruning", cardinalities=TABLES, dim=32, ratio=4, apart=True).keeps_zeros
