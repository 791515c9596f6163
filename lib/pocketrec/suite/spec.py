"""A suite file: the question that a set of runs answers, checked before anything starts."""

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from pocketrec import paths
from pocketrec.errors import UserError, suggest, unknown
from pocketrec.files import read_yaml, spelled

KEYS = ("title", "paper", "notebook", "timed", "grid", "fixed", "search", "knobs", "options", "exclude", "limits")
KEYS += ("jobs",)
METHOD_KEYS = ("title", "knobs")
AXES = ("method", "dataset", "ratio", "seed")
RESERVED = {
    "knobs": "set it under the suite's key `knobs`",
    "dataset_options": "set it under the suite's key `options`",
    "source": "the runner sets it",
    "run_dir": "the runner sets it",
    "checkpoint": "the runner sets it where `checkpoint_minutes` is above 0",
    "score_test": "only runs of a `search` leave the test rows alone",
}
POSITIVE = ("dim", "batch_size", "epochs", "evaluations", "table_lr", "dense_lr", "threads", "nproc", "repeats")
POSITIVE += ("bottom_mlp", "top_mlp", "batch_sizes")
DEVICE = re.compile(r"cpu|cuda(:\d+)?")
NOT_NEGATIVE = {"train_rows": "all", "checkpoint_minutes": "never"}
CHOICES = {
    "quantize": ("none", "int8", "int4"),
    "keep": ("best", "last"),
    "model": ("dlrm", "gmf"),
    "table_optimizer": ("adagrad", "sgd", "adam", "adamw"),
    "dense_optimizer": ("adam", "sgd"),
    "schedule": ("constant", "plateau"),
    "updates": ("fused", "autograd"),
    "precision": ("float32", "bf16"),
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Template:
    """A notebook that runs are made from."""

    path: Path

    @cached_property
    def _cells(self) -> list[dict[str, Any]]:
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        except FileNotFoundError:
            raise UserError(f"{self.path}: no such notebook") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.path}: not a Jupyter notebook of format 4") from None

    @cached_property
    def code(self) -> list[str]:
        """Source of each code cell."""
        return ["".join(cell["source"]) for cell in self._cells if cell["cell_type"] == "code"]

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """Name and default of every assignment in the cell tagged `parameters`."""
        tagged = [c for c in self._cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        if not tagged:
            raise UserError(f"{self.path}: has no cell tagged `parameters`")
        found = {}
        try:
            body = ast.parse("".join(tagged[0]["source"])).body
        except SyntaxError as error:
            raise UserError(f"{self.path}: the cell tagged `parameters` is no Python: {error}") from None
        for node in body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                name = ast.unparse(target)
                try:
                    found[name] = ast.literal_eval(node.value)
                except ValueError:
                    raise UserError(
                        f"{self.path}: parameter `{name}` must be a plain value, got {ast.unparse(node.value)}"
                    ) from None
        return found


@dataclass(frozen=True)
class Limits:
    """What one run may take: wall clock, memory of its processes, and the first guess of its duration."""

    minutes: float = 60
    memory_gb: float | None = None
    expected_seconds: float = 20


@dataclass(frozen=True)
class Suite:
    """A checked suite.

    `cells` is the grid multiplied out, without what is excluded; an axis `robe.block_size` is a knob of one method and
    stands in that method's cells alone. `search` holds one parameter and the values from which validation chooses for
    every configuration, or nothing. `paper` names the notebook that answers the suite, and its measurements, or "".
    """

    name: str
    path: Path
    title: str
    paper: str
    notebook: Template
    timed: Template | None
    cells: tuple[dict[str, Any], ...]
    fixed: dict[str, Any]
    search: dict[str, list[Any]]
    knobs: dict[str, dict[str, Any]]
    options: dict[str, dict[str, Any]]
    limits: Limits
    jobs: int | None

    @property
    def folder(self) -> Path:
        """Where its results lie."""
        return paths.RESULTS / self.name


def find(suite: str) -> Path:
    """Return the file of a suite given by name or by path."""
    if suite.endswith((".yaml", ".yml")) or "/" in suite:
        path = Path(suite)
    else:
        path = paths.PARAMS / "suites" / f"{suite}.yaml"
        if not path.exists():
            known = [p.stem for p in path.parent.glob("*.yaml")]
            raise UserError(f"{path.parent}: no suite {suite!r}{suggest(suite, known)}")
    if not NAME.fullmatch(path.stem):
        raise UserError(f"{path}: a suite's name may hold letters, digits, '.', '_' and '-' only")
    return path


def load(suite: str) -> Suite:
    """Read and check a suite.

    Raises:
        UserError: one sentence naming the file, the key and the remedy.
    """
    path = find(suite)
    content = read_yaml(path)
    _known("key", content, KEYS, path)
    notebook = _template(path, content.get("notebook", "train"))
    timed = _template(path, content["timed"]) if content.get("timed") else None
    fixed = _fixed(path, content, notebook, timed)
    cells = _cells(path, content, notebook.parameters, fixed)
    for axis in ("method", "dataset"):
        if axis not in fixed and not all(axis in cell for cell in cells):
            raise UserError(
                f"{path}: `grid` has no `{axis}`; name one, or several, in every grid, or one under `fixed`"
            )
    resolved = [{**notebook.parameters, **fixed, **cell} for cell in cells]
    return Suite(
        name=path.stem,
        path=path,
        title=str(content.get("title", path.stem)),
        paper=_paper(path, content),
        notebook=notebook,
        timed=timed,
        cells=tuple(cells),
        fixed=fixed,
        search=_search(path, content, notebook.parameters, resolved, {*fixed, *_asked(path, content)}),
        knobs={name: _knobs(path, content, name) for name in _values(path, resolved, "method")},
        options={name: _options(path, content, name) for name in _values(path, resolved, "dataset")},
        limits=_limits(path, content),
        jobs=None if content.get("jobs") is None else _positive(path, "jobs", content["jobs"], int),
    )


def _known(kind: str, words: Iterable[Any], known: Iterable[str], where: object) -> None:
    for word in words:
        if word not in known:
            raise unknown(kind, word, known, where)


def _mapping(where: object, key: str, content: Mapping[str, Any]) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: `{key}` must be a mapping of names to values")
    return value


def _template(where: Path, name: Any) -> Template:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r} is not the name of a notebook in {paths.NOTEBOOKS}")
    if not (paths.NOTEBOOKS / f"{name}.ipynb").exists():
        raise unknown("notebook", name, [p.stem for p in paths.NOTEBOOKS.glob("*.ipynb")], where)
    return Template(paths.NOTEBOOKS / f"{name}.ipynb")


def _positive(where: Path, key: str, value: Any, kind: type = float) -> Any:
    allowed = int if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < float("inf"):
        raise UserError(f"{where}: `{key}` must be a number above 0, got {value!r}")
    return kind(value)


def _limits(where: Path, content: Mapping[str, Any]) -> Limits:
    given = _mapping(where, "limits", content)
    _known("limit", given, Limits.__dataclass_fields__, where)
    return Limits(**{key: _positive(where, f"limits.{key}", value) for key, value in given.items()})


def _parameter(where: Path, name: str, value: Any, defaults: Mapping[str, Any]) -> Any:
    """Return the value of a parameter with the type of its default, or say what is wrong with it."""
    if name == "method":
        from pocketrec.embeddings import METHODS

        _known("method", [_text(where, name, value)], METHODS, where)
    elif name == "dataset":
        from pocketrec import data

        _known("dataset", [_text(where, name, value)], data.available(), where)
    value = checked(where, name, value, defaults[name])
    if name == "ratio" and not 1 <= value < float("inf"):
        raise UserError(f"{where}: `ratio` must be at least 1, got {value:g}")
    if name == "seed" and not 0 <= value < 2**63:
        raise UserError(f"{where}: `seed` must be 0 or above, and below 2^63, got {value}")
    return value


def _text(where: Path, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: `{name}` must be a name, got {value!r}")
    return value


def checked(where: object, name: str, value: Any, default: Any) -> Any:
    """Return a parameter with the type of its default; a `UserError` where it has no meaning."""
    value = typed(where, name, value, default)
    if name in POSITIVE and any(number <= 0 for number in (value if isinstance(value, list) else [value])):
        raise UserError(f"{where}: `{name}` must be above 0, got {value!r}")
    if name == "device" and not DEVICE.fullmatch(value):
        raise UserError(f"{where}: `device` must be cpu, cuda, or one GPU as cuda:0, got {value!r}")
    if name == "target_auc" and not 0 <= value < 1:
        raise UserError(f"{where}: `target_auc` must be 0 (none) or more and below 1, got {value}")
    if name in NOT_NEGATIVE and value < 0:
        raise UserError(f"{where}: `{name}` must be 0 ({NOT_NEGATIVE[name]}) or more, got {value}")
    if name in CHOICES and value not in CHOICES[name]:
        raise unknown(name, value, CHOICES[name], where)
    return value


def typed(where: object, name: str, value: Any, default: Any) -> Any:
    """Return a value with the type of its default; a `UserError` where it has another one."""
    if any(isinstance(v, float) and not math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
        raise UserError(f"{where}: `{name}` must be a finite number, got {value!r}")
    if default is None:
        return value
    if isinstance(default, list) and default and isinstance(value, list):
        return [typed(where, name, element, default[0]) for element in value]
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        kind = type(default).__name__
        raise UserError(f"{where}: `{name}` must be of type {kind}, like {default!r}; got {value!r}")
    return value


def _settable(where: Path, kind: str, name: Any, known: Iterable[str]) -> None:
    if name in RESERVED:
        raise UserError(f"{where}: `{name}` cannot be {kind}: {RESERVED[name]}")
    _known(kind.split()[-1], [name], [n for n in known if n not in RESERVED], where)


def _fixed(where: Path, content: Mapping, notebook: Template, timed: Template | None) -> dict[str, Any]:
    fixed = _mapping(where, "fixed", content)
    defaults = {**(timed.parameters if timed else {}), **notebook.parameters}
    for name in fixed:
        _settable(where, "a fixed parameter", name, defaults)
    return {name: _parameter(where, name, value, defaults) for name, value in fixed.items()}


def _search(
    where: Path, content: Mapping, defaults: Mapping[str, Any], cells: list[dict[str, Any]], taken: set[str]
) -> dict[str, list[Any]]:
    """Return the one parameter that is searched, with its values."""
    search = _mapping(where, "search", content)
    if len(search) > 1:
        raise UserError(f"{where}: `search` takes one parameter, got {', '.join(search)}")
    for name, values in search.items():
        if "," in _text(where, "search", name):
            raise UserError(f"{where}: `search` takes one parameter, got {name!r}; vary the others in `grid`")
        if name in taken:
            raise UserError(f"{where}: `search` names {name}, which `grid` or `fixed` sets already")
        if not isinstance(values, list) or len(values) < 2:
            raise UserError(f"{where}: `search` of {name} needs a list of at least two values, got {values!r}")
        if "score_test" not in defaults:
            raise UserError(f"{where}: `search` needs a notebook with the parameter `score_test`")
        found = {name: [point[name] for point in _axis(where, "search", name, values, defaults)]}
        _used(where, "search", name, {cell.get("method") for cell in cells})
        return found
    return {}


def _used(where: Path, section: str, name: str, methods: Iterable[str]) -> None:
    """Refuse a `method.knob` whose method does not run."""
    method, dot, _ = name.partition(".")
    if dot and method not in methods:
        raise UserError(f"{where}: `{section}` names {name}, but no run is of {method}; add it, or drop {name}")


def _axis(where: Path, section: str, key: Any, values: Any, defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Points of one axis, or of several zipped ones (`"method, ratio": [[full, 1], [robe, 100]]`)."""
    names = [name.strip() for name in _text(where, section, key).split(",")]
    knobs = [name for name in names if "." in name]
    for name in names:
        _known_knob(f"{where}: {section}", name) if name in knobs else _settable(where, "an axis", name, defaults)
    values = values if isinstance(values, list) else [values]
    if names == ["method"] and values == ["all"]:
        from pocketrec.embeddings import available

        values = available()
    if not values:
        raise UserError(f"{where}: axis `{key}` is empty; give at least one value")
    rows = [[value] for value in values] if len(names) == 1 else values
    for row in rows:
        if not isinstance(row, list) or len(row) != len(names):
            raise UserError(f"{where}: axis `{key}` needs lists of {len(names)} values, got {row!r}")
    points = [
        {
            n: _knob(where, *n.split("."), v) if n in knobs else _parameter(where, n, v, defaults)
            for n, v in zip(names, row, strict=True)
        }
        for row in rows
    ]
    for index, point in enumerate(points):
        if point in points[:index]:
            raise UserError(f"{where}: axis `{key}` lists {values[index]!r} twice")
    return points


def _known_knob(where: str, name: str) -> None:
    """Refuse a `method.knob` that there is not."""
    from pocketrec.embeddings import METHODS

    method, _, knob = name.partition(".")
    _known("method", [method], METHODS, where)
    _known(f"knob of {method}", [knob], METHODS[method].knobs, where)


def _knob(where: object, method: str, knob: str, value: Any) -> Any:
    """Return the value of a knob with the type that its method's `solve` gives it."""
    from pocketrec.embeddings import METHODS

    return METHODS[method].knob(knob, value, f"{where}: `{knob}`")


def _cells(
    where: Path, content: Mapping[str, Any], defaults: Mapping[str, Any], fixed: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Multiply out the grid, or each of several, and keep what no rule excludes, every cell once."""
    cells = [cell for grid in _grids(where, content) for cell in _product(where, grid, defaults, fixed)]
    cells = [cell for index, cell in enumerate(cells) if cell not in cells[:index]]
    kept = [cell for cell in cells if not any(_matches(cell, rule) for rule in _exclude(where, content, cells))]
    if not kept:
        raise UserError(f"{where}: `exclude` leaves no run of the grid")
    return kept


def _grids(where: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    grids = content.get("grid")
    grids = grids if isinstance(grids, list) and grids else [grids]
    return [_mapping(where, "grid", {"grid": grid}) for grid in grids]


def _asked(where: Path, content: Mapping[str, Any]) -> dict[str, None]:
    """Return the names of the axes as they stand in the file, in order."""
    keys = (key for grid in _grids(where, content) for key in grid)
    return dict.fromkeys(name.strip() for key in keys for name in key.split(","))


def _product(
    where: Path, grid: Mapping[str, Any], defaults: Mapping[str, Any], fixed: Mapping[str, Any]
) -> list[dict[str, Any]]:
    if not grid:
        raise UserError(f"{where}: `grid` is empty; it needs at least `method` and `dataset`")
    axes = [_axis(where, "grid", key, values, defaults) for key, values in grid.items()]
    names = [name for axis in axes for name in axis[0]]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: axis `{name}` stands in `grid` twice")
    cells = [{k: v for point in points for k, v in point.items()} for points in product(*axes)]
    methods = {(fixed | cell).get("method") for cell in cells}
    if methods != {None}:  # else that is said of the whole file
        for name in names:
            _used(where, "grid", name, methods)
    return [_own(cell, {**defaults, **fixed, **cell}) for cell in cells]


def _own(cell: dict[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cell without knobs of other methods, at the only ratio its method exists at if there is one.

    So the full table runs once, whatever the ratio of the others.
    """
    from pocketrec.embeddings import METHODS

    method = parameters.get("method")
    others = [name for name in cell if "." in name and name.partition(".")[0] != method]
    only = METHODS[method].only_ratio if method in METHODS and "ratio" in parameters else None
    at = {} if only in (None, parameters.get("ratio")) else {"ratio": float(only)}
    return {name: value for name, value in cell.items() if name not in others} | at


def _exclude(where: Path, content: Mapping[str, Any], cells: list[dict[str, Any]]) -> list[dict[str, list]]:
    rules = content.get("exclude") or []
    if not isinstance(rules, list) or not all(isinstance(rule, dict) and rule for rule in rules):
        raise UserError(f"{where}: `exclude` must be a list of mappings of axes to values")
    rules = [{k: v if isinstance(v, list) else [v] for k, v in rule.items()} for rule in rules]
    for axis, values in (item for rule in rules for item in rule.items()):
        _known("axis", [axis], _asked(where, content), f"{where}: exclude")
        known = [cell[axis] for cell in cells if axis in cell]
        for value in values:
            if value not in known:
                raise UserError(
                    f"{where}: `exclude` names {axis} {value!r}, which is not in the grid"
                    + suggest(value, {spelled(v) for v in known})
                )
    return rules


def _matches(cell: Mapping[str, Any], rule: Mapping[str, list]) -> bool:
    return all(axis in cell and cell[axis] in values for axis, values in rule.items())


def _paper(where: Path, content: Mapping[str, Any]) -> str:
    """Return the paper whose notebook answers the suite, or ""."""
    known = [path.stem for path in (Path(__file__).parents[1] / "papers").glob("[!_]*.py")]
    paper = _text(where, "paper", content.get("paper", ""))
    if paper:
        _known("paper", [paper], known, where)
    return paper


def _values(where: Path, resolved: list[dict[str, Any]], name: str) -> list[str]:
    if name not in resolved[0]:
        raise UserError(f"{where}: the notebook has no parameter `{name}`")
    return list(dict.fromkeys(cell[name] for cell in resolved))


def _knobs(where: Path, content: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Defaults of the method's class, then of `params/methods/<method>.yaml`, then of the suite."""
    from pocketrec.embeddings import METHODS

    _known("method under `knobs`", _mapping(where, "knobs", content), METHODS, where)
    knobs = dict(METHODS[method].knobs)
    file = paths.PARAMS / "methods" / f"{method}.yaml"
    layers = [(where, _mapping(where, method, _mapping(where, "knobs", content)))]
    if file.exists():
        own = read_yaml(file)
        _known("key", own, METHOD_KEYS, file)
        layers.insert(0, (file, _mapping(file, "knobs", own)))
    for source, given in layers:
        _known(f"knob of {method}", given, METHODS[method].knobs, source)
        knobs |= {name: _knob(source, method, name, value) for name, value in given.items()}
    return knobs


def _options(where: Path, content: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    from pocketrec import data

    options = _mapping(where, "options", content)
    _known("dataset under `options`", options, data.available(), where)
    given = _mapping(where, dataset, options)
    try:
        data.digest(dataset, given)
    except UserError as error:
        if str(error).startswith("options of "):
            raise UserError(f"{where}: {error}") from None
    return given
