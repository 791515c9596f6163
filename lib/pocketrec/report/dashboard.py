"""Executes the dashboards: notebooks that rebuild their pictures from records alone."""

from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from tqdm import tqdm

from pocketrec.errors import UserError
from pocketrec.files import atomic
from pocketrec.paths import NOTEBOOKS
from pocketrec.report.pages import page
from pocketrec.report.results import read_records

_ENGINE = {
    "kernel_name": "python3",
    "progress_bar": False,
    "extra_arguments": ["--IPKernelApp.log_level=40"],  # no warning about a local TCP port
}


def dashboards(
    suite_dir: str | Path, notebooks: Path = NOTEBOOKS, progress: bool = True, own: str | None = None
) -> list[Path]:
    """Execute dashboards on a suite's folder; return the pages in `<suite_dir>/dashboards/`.

    One with a parameter `method` is executed for each method, one with `other` waits for `compare`; `own`, by default
    the folder's name, is the notebook that answers this suite alone, where there is one. A dashboard that stops keeps
    its notebook and page, which show where; the others are still made. Then `UserError` names those that stopped.
    """
    suite_dir = Path(suite_dir).resolve()
    answer = Path(notebooks) / f"{own or suite_dir.name}.ipynb"
    sources = [*sorted(Path(notebooks).glob("dashboard_*.ipynb")), *([answer] if answer.exists() else [])]
    todo = [job for source in sources for job in _jobs(source, suite_dir)]
    pages, stopped = [], []
    for source, name, parameters in tqdm(todo, "dashboards", unit="notebook", disable=not progress):
        target = suite_dir / "dashboards" / f"{name}.ipynb"
        problem = _execute(source, target, {"results": "."} | parameters, suite_dir)
        pages.append(page(target))
        if problem:
            stopped.append(f"{pages[-1]} stopped with {problem}")
    if stopped:
        raise UserError("; ".join(stopped))
    return pages


def comparison_page(a: str | Path, b: str | Path, target: Path, notebooks: Path = NOTEBOOKS) -> Path:
    """Execute `dashboard_compare.ipynb` on two folders of results; write `target`.ipynb and return its page."""
    target = Path(target).resolve().with_suffix(".ipynb")
    with TemporaryDirectory() as folder:  # so that the notebook names neither folder's place
        for name, side in (("first", a), ("second", b)):
            (Path(folder) / name).symlink_to(Path(side).resolve())
        parameters = {"results": "first", "other": "second"}
        problem = _execute(Path(notebooks) / "dashboard_compare.ipynb", target, parameters, Path(folder))
    if problem:
        raise UserError(f"{page(target)} stopped with {problem}")
    return page(target)


def _jobs(source: Path, suite_dir: Path) -> list[tuple[Path, str, dict[str, str]]]:
    """Return what to execute of a dashboard on a suite: notebook, name of the result, parameters beside `results`."""
    import papermill  # takes two seconds to import, and only the executing needs it

    parameters = papermill.inspect_notebook(str(source))
    if "other" in parameters:
        return []
    if "method" not in parameters:
        return [(source, source.stem, {})]
    methods = sorted({record["method"] for record in read_records(suite_dir)})
    return [(source, f"{source.stem}_{method}", {"method": method}) for method in methods]


def _lighter(png: str) -> str:
    """Return a picture on white with a palette of 256 colours, a third of the bytes; drawings have hardly more."""
    from PIL import Image

    small, drawn = BytesIO(), Image.open(BytesIO(b64decode(png))).convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    flat = Image.alpha_composite(white, drawn).convert("RGB")  # the method that keeps pale colours takes no alpha
    flat.quantize(256, Image.Quantize.MAXCOVERAGE).save(small, "png", optimize=True)
    return b64encode(small.getvalue()).decode()


def _execute(source: Path, target: Path, parameters: dict[str, str], suite_dir: Path) -> str:
    """Execute one notebook into its place, whole or not at all; return the error that stopped it, or ""."""
    import papermill

    problem = ""
    with TemporaryDirectory() as folder:
        output = Path(folder) / source.name
        try:
            papermill.execute_notebook(source, output, parameters, cwd=suite_dir, **_ENGINE)
        except papermill.PapermillExecutionError as error:
            problem = f"{error.ename}: {error.evalue}"
        except Exception as error:  # the kernel, not the notebook: it could not start, or died
            problem = f"{type(error).__name__}: {error}"
        notebook = nbformat.read(output if output.exists() else source, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output["data"]["image/png"] = _lighter(output["data"]["image/png"])
    notebook.metadata.setdefault("papermill", {}).update(
        input_path=source.name, output_path=target.name, exception=bool(problem)
    )
    with atomic(target, "w") as file:
        nbformat.write(notebook, file)
    return problem
