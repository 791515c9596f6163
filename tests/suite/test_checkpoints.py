"""A run that did not end goes on from its checkpoint when it is run again."""

import pytest

SUITE = "grid: {{method: robe, dataset: tiny, act: save}}\nfixed: {{checkpoint_minutes: {minutes}}}\n"


def test_a_checkpoint_outlives_a_crash_and_goes_when_the_run_is_done(root):
    root.suite("long", SUITE.format(minutes=10))
    assert root.call("run", "long")[0] == 1
    (record,) = root.records("long").values()
    (file,) = root.path.glob("results/long/.checkpoints/*/*")
    assert record["status"] == "crashed"
    assert file.parts[-2:] == ("robe--tiny--r100-s0-actsave", f"{record['key']}.safetensors")
    root.suite("long", SUITE.format(minutes=5))  # how often it is saved changes no result
    assert root.call("run", "long")[0] == 0
    (again,) = root.records("long").values()
    assert (again["status"], again["key"]) == ("done", record["key"])
    assert again["parameters"]["checkpoint_minutes"] == 5 and "checkpoint" not in again["parameters"]
    assert not list(root.path.glob("results/long/.checkpoints/*"))
    (notebook,) = root.path.glob("results/long/runs/*/*/*/run.ipynb")
    assert str(root.path) not in notebook.read_text() and ".checkpoints" in notebook.read_text()


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ("checkpoint: state", "`checkpoint` cannot be a fixed parameter: the runner sets it"),
        ("checkpoint_minutes: -1", "`checkpoint_minutes` must be 0 (never) or more, got -1"),
    ],
)
def test_what_a_suite_cannot_say(root, fixed, message):
    root.suite("long", f"grid: {{method: robe, dataset: tiny}}\nfixed: {{{fixed}}}\n")
    code, _, err = root.call("plan", "long")
    assert code == 2 and message in err
