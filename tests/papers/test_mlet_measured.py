import json

import numpy as np
import pytest
import torch

from pocketrec import embeddings, models, training
from pocketrec.metrics import scores
from pocketrec.papers import mlet

ROWS = 512


@pytest.fixture
def suite(tmp_path, tiny):
    """A suite's folder with one run of each kind, as the runner and the notebook leave it."""
    for method, knobs in (("full", {}), ("mlet", {"hidden": 64})):
        embedding = embeddings.build(method, cardinalities=tiny.cardinalities, dim=mlet.RANKED_WIDTH, **knobs)
        model = models.build("dlrm", embedding, tiny.num_dense, [8], [8])
        history = training.fit(model, tiny.thinned(ROWS), batch_size=256, evaluations=1)
        run = f"{method}/planted/r1-s0"
        parameters = {"dim": mlet.RANKED_WIDTH, "knobs": knobs, "dataset_options": tiny.meta["options"]}
        parameters |= {"model": "dlrm", "bottom_mlp": [8], "top_mlp": [8], "batch_size": 256}
        parameters |= {"table_optimizer": "adagrad", "threads": 1, "train_rows": ROWS}
        about = {"seed": 0, "parameters": parameters, "data": tiny.summary()}
        record = {"schema": 1, "run": run, "status": "done", "method": method, "dataset": "planted", "ratio": 1.0}
        folder = tmp_path / "paper_mlet" / "runs" / run
        folder.mkdir(parents=True)
        probabilities = training.predict(model.deploy(), tiny, "test")[0]
        training.save(folder, model.deploy(), history, probabilities)
        (folder / "record.json").write_text(json.dumps(record | about))
    return tmp_path / "paper_mlet"


def test_ranks_count_directions():
    draw = torch.Generator().manual_seed(0)
    straight = torch.linalg.qr(torch.randn(50, 8, generator=draw, dtype=torch.float64))[0]
    assert mlet.ranks(straight) == pytest.approx((8, 8))
    one = torch.outer(torch.arange(1, 51), torch.arange(1, 9)).double()
    assert mlet.ranks(one) == pytest.approx((1, 1), abs=1e-4)
    table = torch.randn(50, 8, generator=draw, dtype=torch.float64)
    values = torch.linalg.svdvals(table)
    shares = values / values.sum()
    assert mlet.ranks(table)[0] == pytest.approx((-(shares * shares.log()).sum()).exp().item())
    assert mlet.ranks(table)[1] == pytest.approx((table.norm() / values[0]).item() ** 2)


def test_measure(suite, tiny):
    tables = mlet.measure(suite, small=True)
    times, ranks = tables["times"], tables["ranks"]
    assert ({*times["model"]}, {*times["k"]}, {*times["work"]}) == ({"suite", "authors"}, {0, 32}, {"step", "tables"})
    assert (times["ms"] > 0).all() and not times.duplicated(["model", "d", "k", "work", "round"]).any()
    assert tables["skipped"].empty
    # a feature's table as it is served, of the ids in the rows that were trained on, each as often as it was seen
    feature = 2
    ids = torch.from_numpy(tiny.ids[tiny.thinned(ROWS).taken("train"), feature].astype("int64"))
    served = embeddings.load(suite / "runs/mlet/planted/r1-s0/embedding.safetensors").materialize(feature).double()
    rows = ranks[(ranks["k"] == 64) & (ranks["feature"] == tiny.feature_names[feature])].set_index("weight")
    assert rows.loc["lookups", "effective_rank"] == pytest.approx(mlet.ranks(served[ids])[0])
    assert rows.loc["ids", "effective_rank"] == pytest.approx(mlet.ranks(served[ids.unique()])[0])
    assert rows.loc["ids", "ids"] == len(ids.unique())
    # the difference on the same test rows is that of the two AUCs
    labels = torch.from_numpy(tiny.labels[tiny.split("test")].copy())
    aucs = {
        method: scores(torch.from_numpy(np.load(suite / f"runs/{method}/planted/r1-s0/predictions.npy")), labels)["auc"]
        for method in ("full", "mlet")
    }
    assert tables["same_rows"]["difference"].item() == pytest.approx(aucs["mlet"] - aucs["full"], abs=1e-6)


def test_tables_that_were_not_kept_are_said(suite):
    (suite / "runs/full/planted/r1-s0/embedding.safetensors").unlink()
    tables = mlet.measure(suite, small=True)
    assert {*tables["ranks"]["k"]} == {64}
    assert tables["skipped"]["reason"].item().startswith("1 of 2 runs")


def test_without_runs_it_says_what_to_run(tmp_path):
    tables = mlet.measure(tmp_path / "paper_mlet", small=True)
    assert tables["times"].empty and tables["ranks"].empty
    assert tables["skipped"]["command"].tolist() == ["pocketrec run paper_mlet"]
