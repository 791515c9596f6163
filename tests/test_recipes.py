"""The papers' recipes: every suite can be planned, has the sizes that were published, and trains on a few rows.

`POCKETREC_SAMPLES` names a folder with genuine samples; they are not part of the project.
"""

import inspect
import math
import os
from pathlib import Path

import pytest

from pocketrec import data, embeddings, models, paths, training
from pocketrec.data import synth
from pocketrec.suite import spec
from pocketrec.suite.plan import plan

RECIPES = {
    "full_criteo_tb": 1,
    "robe_criteo_tb": 4,
    "pss_criteo_tb": 1,
    "tt_rec_criteo_tb": 9,
    "robe_criteo_kaggle": 12,
    "tt_rec_criteo_kaggle": 39,
    "mlet_criteo_kaggle": 45,
    "mlet_avazu": 45,
}
# to train on Criteo-Kaggle's format takes least; the others are for `make test-all`
TRAINED = [name if "kaggle" in name else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
SAMPLES = {
    "criteo-kaggle": "criteo_kaggle_train_head10000.txt",
    "criteo-tb": "criteo_tb_day0_head1000.tsv",
    "avazu": "avazu_train_head9999.csv",
}


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    return tmp_path


def published(name, options):
    """Return the cardinalities that were published for a dataset's options, without the ids for other values."""
    tables = data.catalogue._content(name)["published"]["tables"]
    return next(table["cardinalities"] for table in tables if table["options"].items() <= options.items())


def solved(run):
    """Return the config and the bytes of a run at published cardinalities."""
    given = run.parameters
    options = {"drop_negatives": 0.0, "hour": "feature"} | given["dataset_options"]
    cardinalities = published(given["dataset"], options)
    config = embeddings.solve(given["method"], cardinalities, given["dim"], given["ratio"], **given["knobs"])
    taken = embeddings.inference_bytes(given["method"], cardinalities, given["dim"], config)
    return config, embeddings.full_bytes(cardinalities, given["dim"]) / taken


@pytest.mark.parametrize(("name", "runs"), RECIPES.items())
def test_every_recipe_can_be_planned_without_data(own_data, name, runs):
    suite = spec.load(name)
    planned = plan(suite)
    assert len(planned) == runs and {run.state for run in planned} == {"todo"}
    assert all("where its raw files are is not known" in run.problem for run in planned)
    for run in planned:
        assert run.parameters["table_optimizer"] == run.parameters["dense_optimizer"]  # one optimizer in all papers
        assert run.parameters["table_lr"] == run.parameters["dense_lr"]
        assert run.parameters["dataset_options"]["vocabulary"] == "all"


@pytest.mark.parametrize(
    ("name", "floats"), [("robe_criteo_tb", 27e6), ("pss_criteo_tb", 2.7e6), ("robe_criteo_kaggle", 500e3)]
)
def test_arrays_have_the_published_sizes(own_data, name, floats):
    for run in plan(spec.load(name), method=name.split("_")[0]):
        config, _ = solved(run)
        assert math.isclose(config.get("size") or sum(config["sizes"]), floats, rel_tol=1e-5)
        assert config["block_size"] == run.parameters["knobs"].get("block_size", 32)


@pytest.mark.parametrize(
    ("name", "tables", "rank", "ratio"),
    [
        ("tt_rec_criteo_kaggle", 3, 8, 4.1),
        ("tt_rec_criteo_kaggle", 7, 32, 118),
        ("tt_rec_criteo_kaggle", 7, 8, 222),
        ("tt_rec_criteo_tb", 7, 8, 112.5),
    ],
)
def test_tensor_trains_reach_the_published_ratios(own_data, name, tables, rank, ratio):
    knobs = {"tables": tables, "rank": rank}
    run = next(r for r in plan(spec.load(name), method="tt_rec") if knobs.items() <= r.parameters["knobs"].items())
    assert solved(run)[1] == pytest.approx(ratio, rel=0.02)


def test_target_and_evaluations_are_mlperfs(own_data):
    steps = 4_195_197_692 / 2048
    for name in ("full_criteo_tb", "robe_criteo_tb", "pss_criteo_tb"):
        for run in plan(spec.load(name)):
            assert run.parameters["target_auc"] == 0.8025
            assert steps / run.parameters["evaluations"] == pytest.approx(102_400, rel=0.001)


def smoke(name, file, rows):
    """Train the first run of each method of a suite on some rows of a raw file, and score it in its served form."""
    suite = spec.load(name)
    (dataset,) = suite.options
    data.prepare(dataset, suite.options[dataset], raw=file, progress=False)
    planned = plan(suite)
    for method in suite.knobs:
        run = next(run for run in planned if run.parameters["method"] == method)
        assert not run.problem
        given = run.parameters
        found = data.load(dataset, **given["dataset_options"])
        most = given["dim"] * sum(found.cardinalities) / 1000  # few rows have few ids: leave a thousand floats
        embedding = embeddings.build(
            method,
            cardinalities=found.cardinalities,
            dim=given["dim"],
            ratio=min(given["ratio"], most),
            **given["knobs"],
        )
        model = models.build(given["model"], embedding, found.num_dense, given["bottom_mlp"], given["top_mlp"])
        choices = inspect.signature(training.fit).parameters.keys() - {"model", "dataset"}
        arguments = {key: given[key] for key in choices & given.keys()}
        few = {"epochs": 1, "evaluations": 1, "device": "cpu", "nproc": 1}
        few["batch_size"] = min(given["batch_size"], rows // 4)
        history = training.fit(model, found.thinned(rows), **arguments | few)
        assert history.steps == math.ceil(min(rows, found.rows("train")) / few["batch_size"])
        scores, _ = training.evaluate(model.deploy(), found)
        assert 0 <= scores["test"]["log_loss"] < 100  # finite; some recipes start wide, on three rows


@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_trains_on_genuine_rows(own_data, name):
    (dataset,) = spec.load(name).options
    sample = Path(os.environ.get("POCKETREC_SAMPLES") or own_data / "none") / SAMPLES[dataset]
    if not sample.is_file():
        pytest.skip("POCKETREC_SAMPLES names no folder with the genuine samples")
    smoke(name, sample, 512)


@pytest.mark.parametrize("rows", [5000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TRAINED)
def test_a_recipe_trains_on_generated_rows(own_data, name, rows):
    (dataset,) = spec.load(name).options
    cardinalities = [min(n, rows // 20) for n in data.published_cardinalities(dataset)]
    (own_data / "raw").mkdir()
    files = synth.write(dataset, own_data / "raw", cardinalities, rows, progress=False)
    smoke(name, files, min(rows // 2, 20_000))
