"""A root with tiny notebooks, in which the command line runs as a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

HERE = Path(__file__).parent

PARAMETERS = """
method: str = "robe"
dataset: str = "tiny"
ratio: float = 100.0
seed: int = 0
epochs: float = 1.0
act: str = "ok"
layers: list = [8, 4]
knobs: dict = {}
dataset_options: dict = {}
threads: int = 1
device: str = "cpu"
checkpoint_minutes: float = 0.0
checkpoint: str = ""
run_dir: str = ""
"""

PREAMBLE = """
import os, time
from pathlib import Path
from pocketrec.suite.record import publish
root = Path(os.environ["POCKETREC_ROOT"])
with (root / "ran.txt").open("a") as file:
    print(f"{method}-{ratio:g}-{seed}-{act}", os.getpid(), file=file)
if (root / "mended").exists():
    act = "ok"
class Diverged(Exception): pass
class Infeasible(Exception): pass
"""

ACT = """
if act == "kill": os.kill(os.getpid(), 9)
if act == "killworker": os.kill(os.getppid(), 9)
if act == "memory": hold = bytearray(os.urandom(1)) * 1_500_000_000; time.sleep(60)
if act == "memoryerror": raise MemoryError("too much")
if act == "torchmemory": raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
if act == "sleep": time.sleep(120)
if act == "diverge": raise Diverged("the loss is nan at step 3")
if act == "infeasible": raise Infeasible("the tables alone need 9 MB; the budget is 4 MB")
if act == "nan": publish(run_dir, metrics={"test": {"auc": float("nan")}})
if act == "rawnan": Path("metrics.json").write_text('{"metrics": {"test": {"auc": NaN}}}')
if act == "disk": raise OSError(28, "No space left on device")
if act == "big": Path("big.bin").write_bytes(bytes(20_000_000))
if act == "save":
    before = Path(checkpoint).exists()
    Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
    Path(checkpoint).write_text("state")
    if not before: os.kill(os.getpid(), 9)
if act == "raise": raise ValueError("first line\\nsecond line")
"""

PUBLISH = """
if act not in ("silent", "rawnan"):
    publish(run_dir, sizes={"budget_bytes": 100, "inference_bytes": 103 if act == "budget" else 102})
    publish(run_dir, metrics={"test": {"auc": 0.75}})
"""

LATENCY_PARAMETERS = """
source: str = ""
repeats: int = 5
threads: int = 1
run_dir: str = ""
"""

LATENCY = """
import json
from pathlib import Path
from pocketrec.suite.record import publish
auc = json.loads((Path(source) / "metrics.json").read_text())["metrics"]["test"]["auc"]
publish(run_dir, speed=[{"part": "model", "batch": 1, "p50_ms": auc}])
"""


class Root:
    """A tree as a user has it, below a temporary folder."""

    command: tuple[str, ...] = (sys.executable, str(HERE / "standins.py"))
    patience = 120  # seconds

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("params/datasets/tiny.yaml", "options: {rows: 10}\nrecipe: {epochs: 2, batch_size: 7}\n")
        self.write("params/datasets/absent.yaml", "missing: true\n")
        self.notebook("train", PARAMETERS, PREAMBLE, ACT, PUBLISH)
        self.notebook("latency", LATENCY_PARAMETERS, LATENCY)

    def write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def suite(self, name: str, text: str) -> Path:
        return self.write(f"params/suites/{name}.yaml", text)

    def notebook(self, name: str, parameters: str, *cells: str) -> None:
        new = nbformat.v4.new_code_cell
        first = new(parameters.strip(), metadata={"tags": ["parameters"]})
        notebook = nbformat.v4.new_notebook(cells=[first, *(new(cell.strip()) for cell in cells)])
        self.write(f"notebooks/{name}.ipynb", nbformat.writes(notebook))

    @property
    def environment(self) -> dict[str, str]:
        own = {"POCKETREC_ROOT": str(self.path), "TMPDIR": str(self.path), "COLUMNS": "200"}
        return {name: value for name, value in os.environ.items() if name != "POCKETREC_DATA"} | own

    def start(self, *arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*prefix, *self.command, *arguments],
            env=self.environment | environment,
            cwd=self.path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def call(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=self.patience)
        return process.returncode, out, err

    def records(self, suite: str) -> dict[str, dict]:
        """Records by name of the run; each of them stands beside its notebook."""
        files = sorted((self.path / "results" / suite / "runs").glob("*/*/*/record.json"))
        assert all((file.parent / "run.ipynb").exists() for file in files)
        return {(found := json.loads(file.read_text()))["run"]: found for file in files}

    def ran(self) -> list[str]:
        """What was executed so far, a word for each execution."""
        file = self.path / "ran.txt"
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

    def kernels(self) -> list[int]:
        return [int(line.split()[1]) for line in (self.path / "ran.txt").read_text().splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    return Root(tmp_path_factory.mktemp("root"))
