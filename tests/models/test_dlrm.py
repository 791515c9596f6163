"""DLRM against an independent computation of its forward, and its published sizes."""

import numpy as np
import pytest
import torch

from pocketrec import embeddings, models
from pocketrec.embeddings.base import generator
from pocketrec.models import DLRM

CARDINALITIES = [11, 5, 300]


def build(num_dense=4, **kwargs):
    embedding = embeddings.build("full", cardinalities=CARDINALITIES, dim=8, seed=1)
    return DLRM(embedding, num_dense, bottom_mlp=[6], top_mlp=[7, 5], seed=2, **kwargs)


def batch(num_dense=4, rows=9):
    draw = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randint(0, n, (rows,), generator=draw) for n in CARDINALITIES], 1)
    return torch.randn(rows, num_dense, generator=draw), ids


def layers(sequential):
    return [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in sequential if hasattr(m, "weight")]


def by_hand(model, dense, ids):
    """One row at a time, in numpy, from the paper's description."""
    logits = []
    for numbers, row in zip(dense.numpy(), ids.numpy(), strict=True):
        vectors = [model.embedding.materialize(f)[i].detach().numpy() for f, i in enumerate(row)]
        x = numbers
        if model.bottom is not None:
            for weight, bias in layers(model.bottom):
                x = np.maximum(weight @ x + bias, 0)
            vectors.insert(0, x)
        products = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
        z = np.concatenate([x, products] if model.bottom is not None else [products])
        *hidden, (weight, bias) = layers(model.top)
        for w, b in hidden:
            z = np.maximum(w @ z + b, 0)
        logits.append((weight @ z + bias)[0])
    return np.array(logits)


@pytest.mark.parametrize("num_dense", [4, 0], ids=["dense", "no-dense"])
def test_forward_is_the_papers(num_dense):
    model, (dense, ids) = build(num_dense), batch(num_dense)
    np.testing.assert_allclose(model(dense, ids).detach().numpy(), by_hand(model, dense, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dim", "bottom", "top", "parameters"),
    [(16, [512, 256, 64], [512, 256], 475_985), (128, [512, 256], [1024, 1024, 512, 256], 2_368_897)],
    ids=["criteo-kaggle", "mlperf"],
)
def test_dense_parameters_of_the_published_configurations(dim, bottom, top, parameters):
    embedding = embeddings.build("full", cardinalities=[2] * 26, dim=dim)
    model = DLRM(embedding, 13, bottom, top)
    assert sum(weight.numel() for weight in model.dense_state().values()) == parameters


def test_width_follows_the_embedding():
    narrow = embeddings.build("low_dim", cardinalities=CARDINALITIES, dim=8, ratio=4, projection=False)
    assert DLRM(narrow, 4, [6], [7])(*batch()).shape == (9,)


def test_a_single_feature_without_dense_ones_is_refused():
    with pytest.raises(ValueError, match="nothing to pair"):
        DLRM(embeddings.build("full", cardinalities=[5], dim=8), 0)


def test_same_seed_same_weights():
    for one, other in zip(build().parameters(), build().parameters(), strict=True):
        assert torch.equal(one, other)


def test_saved_model_gives_the_same_predictions(tmp_path):
    model, (dense, ids) = build(), batch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    written = models.save(model.deploy(), tmp_path)
    assert written == model.embedding.storage().inference_bytes
    torch.testing.assert_close(models.load(tmp_path)(dense, ids), model(dense, ids), rtol=0, atol=0)


def test_the_served_copy_shares_nothing_with_what_is_trained():
    model, inputs = build(), batch()
    before = model(*inputs)
    served = model.deploy()
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not own & {tensor.data_ptr() for tensor in (*served.parameters(), *served.buffers())}
    served.double()
    for tensor in (*served.parameters(), *served.buffers()):
        tensor.zero_()
    torch.testing.assert_close(model(*inputs), before, rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("method", "ratio"), [("full", 1), ("robe", 4)])
def test_compiles_in_one_piece_and_exports(method, ratio):
    embedding = embeddings.build(method, cardinalities=CARDINALITIES, dim=8, ratio=ratio, seed=1)
    model, (dense, ids) = DLRM(embedding, 4, bottom_mlp=[6], top_mlp=[7]), batch()
    served = model.deploy()
    expected = served(dense, ids)
    compiled = torch.compile(served, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(dense, ids), expected)
    torch.testing.assert_close(torch.export.export(served, (dense, ids)).module()(dense, ids), expected)
    logits = torch.compile(model, fullgraph=True, backend="aot_eager")(dense, ids)
    logits.sum().backward()
    found = [weight.grad.clone() for weight in model.bottom.parameters()]
    model.zero_grad()
    model(dense, ids).sum().backward()
    for one, other in zip(found, model.bottom.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)


def test_sizes_are_real_bytes(tiny):
    embedding = embeddings.build("robe", cardinalities=tiny.cardinalities, dim=16, ratio=10)
    model = DLRM(embedding, tiny.num_dense, [8], [8])
    sizes = model.sizes(10)
    assert sizes["full_bytes"] == 4 * 16 * sum(tiny.cardinalities)
    assert sizes["inference_bytes"] == 4 * len(embedding.array.weight) <= sizes["budget_bytes"]
    dense = sum(p.numel() * 4 for name, p in model.named_parameters() if not name.startswith("embedding"))
    assert sizes["dense_bytes"] == dense
    assert sizes["model_ratio"] == pytest.approx((sizes["full_bytes"] + dense) / (sizes["inference_bytes"] + dense))


def test_mlps_draw_from_a_stream_that_no_table_draws_from():
    embedding = embeddings.build("full", cardinalities=[50], dim=16, seed=0)
    weight = DLRM(embedding, 13, [64], [8], seed=0).bottom[0].weight.detach().flatten()
    of_the_tables = torch.randn(len(weight), generator=generator(0))
    assert torch.corrcoef(torch.stack([weight, of_the_tables]))[0, 1].abs() < 0.2
