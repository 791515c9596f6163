"""GMF against the dot product it is, and what it refuses."""

import pytest
import torch

from pocketrec import embeddings, models
from pocketrec.errors import UserError
from pocketrec.models import GMF


def build(method="full", **kwargs):
    return GMF(embeddings.build(method, cardinalities=[11, 300], dim=8, seed=1, **kwargs))


def batch(rows=9):
    draw = torch.Generator().manual_seed(0)
    return torch.empty(rows, 0), torch.stack([torch.randint(0, n, (rows,), generator=draw) for n in (11, 300)], 1)


@pytest.mark.parametrize(("method", "ratio"), [("full", 1), ("robe", 4), ("low_dim", 2)])
def test_the_logit_is_the_product_of_the_two_rows(method, ratio):
    model, (dense, ids) = build(method, ratio=ratio), batch()
    users, items = (model.embedding.materialize(f) for f in (0, 1))
    expected = [float(users[u].detach().double() @ items[i].detach().double()) for u, i in ids.tolist()]
    torch.testing.assert_close(model(dense, ids).double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-9)


def test_nothing_is_learned_outside_the_tables():
    model = build()
    assert [name for name, _ in model.named_parameters()] == ["embedding.table.weight"]
    assert model.dense_state() == {}


@pytest.mark.parametrize(("cardinalities", "dense"), [([5], 0), ([5, 6, 7], 0), ([5, 6], 1)])
def test_other_than_two_features_are_refused(cardinalities, dense):
    embedding = embeddings.build("full", cardinalities=cardinalities, dim=8)
    with pytest.raises(UserError, match=f"not {len(cardinalities)} and {dense}; .*model dlrm"):
        models.build("gmf", embedding, dense, [4], [4])


def test_models_are_built_by_name():
    embedding = embeddings.build("full", cardinalities=[5, 6], dim=8)
    assert isinstance(models.build("gmf", embedding, 0, [4], [4]), GMF)
    assert models.build("dlrm", embedding, 3, [4], [4]).shape["num_dense"] == 3
    with pytest.raises(UserError, match="did you mean 'gmf'"):
        models.build("gfm", embedding, 0, [], [])


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_saved_model_gives_the_same_predictions(tmp_path, quantize):
    model, (dense, ids) = build("robe", ratio=4), batch()
    served = model.deploy(quantize)
    assert models.save(served, tmp_path) == model.embedding.storage(quantize).inference_bytes
    loaded = models.load(tmp_path)
    assert isinstance(loaded, GMF)
    torch.testing.assert_close(loaded(dense, ids), served(dense, ids), rtol=0, atol=0)
