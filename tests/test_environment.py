"""One set of pins, whichever way the environment is made."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rattler import MatchSpec
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    Requirement(line).name: Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}
CONDA = YAML(typ="safe").load((ROOT / "environment.yml").read_text())
EXTRAS = PROJECT["optional-dependencies"]
NAMED = [Requirement(r) for r in [*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]]


@pytest.mark.parametrize("requirement", NAMED, ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_its_range(requirement):
    (pin,) = PINS[requirement.name].specifier
    assert pin.operator == "==" and pin.version in requirement.specifier


def test_conda_parses_and_leaves_python_packages_to_pip():
    specs = [MatchSpec(spec) for spec in CONDA["dependencies"] if isinstance(spec, str)]
    names = {spec.name.normalized for spec in specs}
    assert {"python", "pip", "make", "git"} <= names and not names & PINS.keys()


def test_conda_installs_the_same_as_make():
    (pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    command = re.search(r"pip install .*?(-c \S+) (-e) \"(\S+)\"", (ROOT / "Makefile").read_text())
    assert pip == [command[1], f"{command[2]} {command[3]}"]


def test_conda_python_is_one_that_the_project_allows():
    (python,) = [spec for spec in CONDA["dependencies"] if isinstance(spec, str) and spec.startswith("python=")]
    assert python.removeprefix("python=") in Requirement(f"x{PROJECT['requires-python']}").specifier


@pytest.mark.slow
@pytest.mark.network
def test_the_pip_section_makes_a_working_environment(tmp_path):
    (pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    (tmp_path / "requirements.txt").write_text("\n".join(pip).replace("constraints.txt", f"{ROOT}/constraints.txt"))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env/bin/python"
    install = [python, "-m", "pip", "install", "-q", "-r", tmp_path / "requirements.txt"]
    subprocess.run(install, cwd=ROOT, check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    subprocess.run([python, "-c", "import pocketrec; pocketrec.load_results; import jupyterlab"], check=True)
