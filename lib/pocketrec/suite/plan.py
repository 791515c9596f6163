"""The runs of a suite, each with the key that says whether its result still holds."""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from statistics import mean
from typing import Any

import pocketrec
from pocketrec import paths
from pocketrec.errors import UserError, unknown
from pocketrec.files import source_hash, spelled
from pocketrec.suite import record
from pocketrec.suite.process import is_locked
from pocketrec.suite.spec import AXES, Suite, Template, checked

PACKAGE = Path(pocketrec.__file__).parent
SHARED_CODE = (
    "embeddings/*.py",
    "kernels/*.py",
    "kernels/csrc/*",
    "kernels/gpu/*.py",
    "models/*.py",
    "data/prepared.py",
    "training.py",
    "distributed.py",
    "optim.py",
    "metrics.py",
)
OF_THE_RUNNER = ("run_dir", "checkpoint")  # parameters that it sets
TIMED_CODE = ("measure.py",)
WITHOUT_EFFECT = ("checkpoint_minutes",)  # parameters that change no number, and so no key


@dataclass(frozen=True)
class Run:
    """One notebook to execute.

    Attributes:
        name: path under the suite's `runs`, like `robe/planted/r100-s0`.
        kind: "quality"; "search" for one that only helps to choose a parameter and leaves the test rows alone;
            "timed" for the latency of a quality run's saved form.
        parameters: all parameters of the notebook, resolved, without those that the runner sets.
        identity: method, dataset, ratio and (quality runs) seed, as they stand in the record.
        key: same key, same result.
        data: name and digest of the dataset.
        options: the dataset's options.
        problem: why the run cannot start, or "".
        source: name of the quality run whose saved form a timed run measures, or "".
        search: what the search that chose one of the parameters found, for the record, or nothing.
        state: status of its record, or todo, stale (settled under another key), running.
        reason: of a record that failed.
        seconds: how long it will probably take.
    """

    suite: str
    name: str
    kind: str
    template: Template
    parameters: dict[str, Any]
    identity: dict[str, Any]
    key: str
    data: dict[str, str]
    options: dict[str, Any]
    problem: str
    source: str
    search: dict[str, Any]
    state: str
    reason: str
    seconds: float

    @property
    def folder(self) -> Path:
        """Where its results lie."""
        return paths.RESULTS / self.suite / "runs" / self.name

    @property
    def checkpoints(self) -> Path:
        """Where an unfinished run keeps the state of its training, for when it is run again; of any key."""
        return paths.RESULTS / self.suite / ".checkpoints" / self.name.replace("/", "--")

    @property
    def arguments(self) -> dict[str, Any]:
        """What its notebook is given: the parameters, and those that the runner sets."""
        checkpoint = str(self.checkpoints / f"{self.key}.safetensors")
        saves = {"checkpoint": checkpoint} if self.parameters.get("checkpoint_minutes") else {}
        return {**self.parameters, **saves, "run_dir": "."}

    @property
    def lock(self) -> Path:
        """The file that its executor locks."""
        return lock_file(self.suite, self.name)

    @property
    def pending(self) -> bool:
        """Whether `run` has something to do here."""
        return not self.settles(self.state)

    def settles(self, status: str) -> bool:
        """Whether a status is this run's answer; that a value diverges is what a search wants to know."""
        return status in _answers(self.kind)


def _answers(kind: str) -> tuple[str, ...]:
    return (*record.SETTLED, "diverged") if kind == "search" else record.SETTLED


def lock_file(suite: str, name: str) -> Path:
    """Return the file that the executor of a run locks."""
    return paths.RESULTS / suite / ".locks" / f"{name.replace('/', '--')}.lock"


def plan(suite: Suite, **filters: str | None) -> list[Run]:
    """List the runs of a suite: searches, quality runs, timed runs.

    Where a search is not settled yet, the parameters of the runs that wait for it are those of its first value:
    `execute` settles searches before it plans the rest.

    Args:
        suite: the suite.
        filters: `method`, `dataset`, `ratio`, `seed`: values separated by commas, or None for all.

    Raises:
        UserError: for a filter that names what the suite does not have, or names that collide.
    """
    facts = _facts(suite)
    searches = list(_searches(suite, facts))
    quality = [_quality(suite, cell, facts, _found(suite, cell, searches)) for cell in suite.cells]
    timed = list(_timed(suite, quality)) if suite.timed else []
    _check_names(suite, [*searches, *quality, *timed])
    chosen = _filter(suite, [*searches, *quality, *timed], quality, filters)
    durations = _durations(suite)
    return [_with_state(suite, run, durations) for run in chosen]


def total_seconds(runs: Iterable[Run], jobs: int) -> float:
    """How long what is pending will probably take: timed runs one by one, the others side by side."""
    timed = sum(run.seconds for run in runs if run.pending and run.kind == "timed")
    return timed + sum(run.seconds for run in runs if run.pending and run.kind != "timed") / jobs


@dataclass(frozen=True)
class _Facts:
    """What the keys rest on besides parameters: recipe, digest and problem of each dataset, code of each method."""

    recipes: dict[str, dict[str, Any]]
    digests: dict[str, str]
    problems: dict[str, str]
    code: dict[str, dict[str, str]]


def _facts(suite: Suite) -> _Facts:
    from pocketrec import data

    facts = _Facts(recipes={}, digests={}, problems={}, code={})
    defaults = suite.notebook.parameters
    for name, options in suite.options.items():
        recipe, where = data.recipe(name), f"{paths.PARAMS / 'datasets' / name}.yaml: recipe"
        for key in [key for key in recipe if key not in defaults and get_close_matches(key, defaults, cutoff=0.8)]:
            raise unknown("parameter", key, defaults, where)  # mistyped; others are for another notebook
        recipe = {key: value for key, value in recipe.items() if key in defaults}
        facts.recipes[name] = {key: checked(where, key, value, defaults[key]) for key, value in recipe.items()}
        try:
            facts.digests[name] = data.digest(name, options)
        except UserError as error:
            facts.problems[name] = str(error)
    shared = _code(SHARED_CODE, skip=_method_files())
    facts.code.update({method: shared | _files(_method_files(method)) for method in suite.knobs})
    return facts


def _configuration(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the seeds of one configuration share."""
    return {axis: value for axis, value in cell.items() if axis != "seed"}


def _searches(suite: Suite, facts: _Facts) -> Iterator[dict[str, Any]]:
    """For every configuration, a run with its first seed for each value searched."""
    seen = []
    for cell in suite.cells:
        configuration = _configuration(cell)
        if configuration in seen:
            continue
        seen.append(configuration)
        for parameter, values in suite.search.items():
            for value in values if _concerns(parameter, suite, cell) else ():
                run = _quality(suite, {**cell, parameter: value}, facts, extra={"score_test": False})
                name = _name(run["parameters"], {**configuration, parameter: value}, "search")
                yield run | {"name": name, "kind": "search", "cell": cell, "value": value}


def _concerns(parameter: str, suite: Suite, cell: Mapping[str, Any]) -> bool:
    """Whether a cell leaves the parameter open, and its method has it; a knob is that of one method."""
    if parameter in cell:  # the ratio of a method that exists at one only
        return False
    method = {**suite.notebook.parameters, **suite.fixed, **cell}["method"]
    return "." not in parameter or parameter.partition(".")[0] == method


def _found(suite: Suite, cell: Mapping[str, Any], searches: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the search of a cell's configuration has found, with the value chosen on validation.

    A value whose run failed has no score, nor has one on validation rows of a single class; where none has one, or the
    search is not settled, the first is taken.
    """
    for parameter, values in suite.search.items():
        mine = [run for run in searches if _configuration(run["cell"]) == _configuration(cell)]
        if not mine:
            continue
        records = [record.read(suite.folder / "runs" / run["name"]) or {} for run in mine]
        done = [
            (found["metrics"]["validation"]["auc"], run["value"])
            for run, found in zip(mine, records, strict=True)
            if found.get("key") == run["key"] and found["status"] == "done" and "auc" in found["metrics"]["validation"]
        ]
        return {
            "parameter": parameter,
            "validation_auc": {spelled(value): auc for auc, value in done},
            "chosen": max(done, key=lambda scored: scored[0])[1] if done else values[0],
            "seconds": round(sum(found.get("seconds", 0) for found in records), 3),
        }
    return {}


def _quality(
    suite: Suite,
    cell: Mapping[str, Any],
    facts: _Facts,
    search: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    defaults = suite.notebook.parameters
    chosen = {search["parameter"]: search["chosen"]} if search else {}
    method, dataset = ({**defaults, **suite.fixed, **cell}[axis] for axis in ("method", "dataset"))
    layers = {**defaults, **facts.recipes[dataset], **suite.fixed, **chosen, **cell, **(extra or {})}
    knobs = suite.knobs[method] | {_knob(axis): value for axis, value in {**chosen, **cell}.items() if "." in axis}
    layers |= {"knobs": knobs, "dataset_options": suite.options[dataset]}
    parameters = {name: layers[name] for name in defaults if name not in OF_THE_RUNNER}
    telling = {name: value for name, value in parameters.items() if name not in WITHOUT_EFFECT}
    digest = facts.digests.get(dataset)
    return {
        "name": _name(parameters, cell, f"s{parameters.get('seed', 0)}"),
        "kind": "quality",
        "template": suite.notebook,
        "parameters": parameters,
        "identity": {axis: parameters[axis] for axis in AXES if axis in parameters},
        "key": _hash(telling, suite.notebook.code, facts.code[method], digest),
        "data": {"name": dataset, **({"digest": digest} if digest else {})},
        "options": suite.options[dataset],
        "problem": facts.problems.get(dataset, ""),
        "source": "",
        "search": dict(search or {}),
        "cell": dict(cell),
    }


def _timed(suite: Suite, quality: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One for each configuration: everything but the seed; it measures what the first seed has saved."""
    defaults = suite.timed.parameters
    seen = []
    for run in quality:
        configuration = _configuration(run["cell"])
        if configuration in seen:
            continue
        seen.append(configuration)
        given = {**defaults, **suite.fixed, **configuration, "source": f"../{Path(run['name']).name}"}
        parameters = {name: given[name] for name in defaults if name not in OF_THE_RUNNER}
        yield run | {
            "name": _name(run["parameters"], configuration, "latency"),
            "kind": "timed",
            "template": suite.timed,
            "parameters": parameters,
            "identity": {axis: value for axis, value in run["identity"].items() if axis != "seed"},
            "key": _hash(parameters, suite.timed.code, _code(TIMED_CODE), run["key"]),
            "source": run["name"],
            "source_key": run["key"],
            "search": {},
        }


def _name(parameters: Mapping[str, Any], cell: Mapping[str, Any], last: str) -> str:
    ratio = f"r{parameters['ratio']:g}-" if "ratio" in parameters else ""
    others = [f"-{_knob(axis)}{spelled(value)}" for axis, value in cell.items() if axis not in AXES]
    parts = [parameters["method"], parameters["dataset"], ratio + last + "".join(others)]
    return "/".join(_safe(part) for part in parts)


def _knob(axis: str) -> str:
    """Return the name of a knob from its axis, `block_size` from `robe.block_size`; other axes as they are."""
    return axis.rpartition(".")[2]


def _safe(part: str) -> str:
    """Return a name for one folder that cannot mean another one."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", part).lstrip(".") or "_"


def _check_names(suite: Suite, runs: list[dict[str, Any]]) -> None:
    names = [run["name"] for run in runs]
    root = (suite.folder / "runs").resolve()
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{suite.path}: two runs would share the folder {name}; rename an axis's values")
        if not (root / name).resolve().is_relative_to(root):
            raise UserError(f"{suite.path}: the run {name} would lie outside {root}")


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _files(files: Iterable[Path]) -> dict[str, str]:
    return {_relative(file): source_hash(file) for file in sorted(files)}


def _relative(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else file.name


def _code(patterns: Iterable[str], skip: Iterable[Path] = ()) -> dict[str, str]:
    return _files({file for pattern in patterns for file in PACKAGE.glob(pattern)} - set(skip))


def code_hash(patterns: Iterable[str]) -> str:
    """Return one hash of the files of this package that match."""
    return _hash(_code(patterns))


def _method_files(*methods: str) -> set[Path]:
    """Files of the methods (all when none is given), and of the methods that they extend."""
    from pocketrec.embeddings import METHODS

    classes = {base for name in methods or METHODS for base in METHODS[name].__mro__}
    bases = {base for base in classes if base in METHODS.values()}
    return {Path(sys.modules[base.__module__].__file__) for base in bases}


def _filter(
    suite: Suite, runs: list[dict[str, Any]], quality: list[dict[str, Any]], filters: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    """Keep the runs that match; a timed run goes with the run that it measures, a search with what it serves."""
    kept = {run["name"] for run in quality}
    for axis, text in filters.items():
        if text is None:
            continue
        named = {run["name"]: _number(str(run["identity"].get(axis))) for run in quality}
        wanted = {_number(word) for word in text.split(",") if word.strip()}
        for word in wanted.difference(named.values()):
            raise unknown(axis, word, set(named.values()), suite.path)
        kept &= {name for name, value in named.items() if value in wanted}
    served = [_configuration(run["cell"]) for run in quality if run["name"] in kept]
    chosen = [
        run
        for run in runs
        if (
            _configuration(run["cell"]) in served if run["kind"] == "search" else (run["source"] or run["name"]) in kept
        )
    ]
    if not chosen:
        raise UserError(f"{suite.path}: no run matches all of the filters given")
    return chosen


def _number(word: str) -> str:
    """Return one spelling for all of a number, as 1000 for 1e3 and 1000.0; other words as they are."""
    with suppress(ValueError):
        return str(int(word))
    with suppress(ValueError):
        return str(int(float(word))) if float(word).is_integer() else str(float(word))
    return word.strip()


def _durations(suite: Suite) -> dict[tuple[str, ...], float]:
    """Mean seconds of the runs done so far, by kind, dataset and method, and by kind and dataset."""
    taken: dict[tuple[str, ...], list[float]] = {}
    for file in (suite.folder / "runs").glob("*/*/*/record.json"):
        found = record.read(file.parent)
        if found and found["status"] == "done":
            place = (found["kind"], found["dataset"])
            for key in (place, (*place, found["method"])):
                taken.setdefault(key, []).append(found["seconds"])
    return {key: mean(values) for key, values in taken.items()}


def _with_state(suite: Suite, run: Mapping[str, Any], durations: Mapping[tuple[str, ...], float]) -> Run:
    fields = {name: value for name, value in run.items() if name not in ("cell", "source_key", "value")}
    place = (run["kind"], run["identity"]["dataset"])
    guess = durations.get(place, suite.limits.expected_seconds)
    state, reason = state_of(suite.name, run["name"], run["key"], run["kind"])
    if run["source"] and state_of(suite.name, run["source"], run["source_key"])[0] == "infeasible":
        state, reason = "infeasible", "its quality run is"
    seconds = durations.get((*place, run["identity"]["method"]), guess)
    return Run(suite=suite.name, state=state, reason=reason, seconds=seconds, **fields)


def state_of(suite: str, name: str, key: str, kind: str = "quality") -> tuple[str, str]:
    """Return a run's state and, when its record has one, the reason."""
    if is_locked(lock_file(suite, name)):
        return "running", ""
    found = record.read(paths.RESULTS / suite / "runs" / name)
    if found is None:
        file = paths.RESULTS / suite / "runs" / name / "record.json"
        return ("failed", f"{file} cannot be read") if file.exists() else ("todo", "")
    if found["key"] != key and found["status"] in _answers(kind):
        return "stale", ""
    return found["status"], found.get("reason", "")
