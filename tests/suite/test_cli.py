"""The command line: help, exit codes, and sentences instead of tracebacks."""

import subprocess
import sys

import pytest

from pocketrec.suite import doctor

SUITE = "title: Two methods\ngrid: {method: [robe, full], dataset: tiny}\n"


def test_help_lists_the_commands_and_imports_nothing_slow():
    done = subprocess.run([sys.executable, "-m", "pocketrec.suite.cli", "--help"], capture_output=True, text=True)
    panels = "all plan run retry status collect dashboards index compare prepare synth bench doctor"
    for command in panels.split():
        assert f" {command} " in done.stdout
    code = "import sys, pocketrec.suite.cli; print({'torch', 'pandas', 'papermill'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_plan(root):
    root.suite("two", SUITE)
    code, out, _ = root.call("plan", "two")
    assert code == 0
    assert "Two methods" in out and "robe/tiny/r100-s0" in out and "2 todo" in out and "minutes" in out


def test_a_users_error_is_one_sentence(root):
    root.suite("two", SUITE)
    for arguments, message in {
        ("run", "tow"): "no suite 'tow'; did you mean 'two'?",
        ("run", "two", "--method", "rob"): "unknown method 'rob'; did you mean 'robe'?",
        ("compare", "nowhere/quick", "two"): "nowhere/quick: no such folder",
        ("run", "two", "--executor", "rya"): "--executor: unknown executor 'rya'; did you mean 'ray'?",
    }.items():
        code, out, err = root.call(*arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_suite_outside_the_parameters(root):
    file = root.write("elsewhere/own.yaml", SUITE)
    assert "robe/tiny/r100-s0" in root.call("plan", str(file))[1]


@pytest.mark.parametrize(("flags", "value"), [({"avx2"}, "emulated"), ({"amx_bf16", "avx2"}, "by the processor")])
def test_the_doctor_says_where_bf16_is_slow(flags, value, monkeypatch):
    monkeypatch.setattr(doctor, "_instructions", lambda: flags)
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    (found,) = [line for line in doctor.findings() if line[0] == "bf16"]
    assert found[1] == value and bool(found[2]) == (value == "emulated")
