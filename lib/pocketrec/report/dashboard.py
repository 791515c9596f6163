"""Executes the dashboards: notebooks that rebuild their pictures from records alone."""

from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from tqdm import tqdm

from pocketrec.errors import UserError
from pocketrec.files import atomic
from pocketrec.paths import NOTEBOOKS
from pocketrec.report.pages import page

_ENGINE = {
    "kernel_name": "python3",
    "progress_bar": False,
    "extra_arguments": ["--IPKernelApp.log_level=40"],  # no warning about a local TCP port
}


def dashboards(
    suite_dir: str | Path, notebooks: Path = NOTEBOOKS, progress: bool = True, suite: str | None = None
) -> list[Path]:
    """Execute dashboards on a suite's folder; return the pages in `<suite_dir>/dashboards/`.

    They are every `dashboard_*.ipynb`, and the notebook named as the suite (by default the folder) where there is one.
    A dashboard that stops keeps its notebook and page, which show where; the others are still made. Then
    `UserError` names those that stopped.
    """
    suite_dir = Path(suite_dir).resolve()
    own = Path(notebooks) / f"{suite or suite_dir.name}.ipynb"
    sources = [*sorted(Path(notebooks).glob("dashboard_*.ipynb")), *([own] if own.exists() else [])]
    pages, stopped = [], []
    for source in tqdm(sources, "dashboards", unit="notebook", disable=not progress):
        target = suite_dir / "dashboards" / source.name
        problem = _execute(source, target, suite_dir)
        pages.append(page(target))
        if problem:
            stopped.append(f"{pages[-1]} stopped with {problem}")
    if stopped:
        raise UserError("; ".join(stopped))
    return pages


def _execute(source: Path, target: Path, suite_dir: Path) -> str:
    """Execute one notebook into its place, whole or not at all; return the error that stopped it, or ""."""
    import papermill  # takes two seconds to import, and only the executing needs it

    problem = ""
    with TemporaryDirectory() as folder:
        output = Path(folder) / source.name
        try:
            papermill.execute_notebook(source, output, {"results": "."}, cwd=suite_dir, **_ENGINE)
        except papermill.PapermillExecutionError as error:
            problem = f"{error.ename}: {error.evalue}"
        except Exception as error:  # the kernel, not the notebook: it could not start, or died
            problem = f"{type(error).__name__}: {error}"
        notebook = nbformat.read(output if output.exists() else source, as_version=4)
    notebook.metadata.setdefault("papermill", {}).update(
        input_path=source.name, output_path=target.name, exception=bool(problem)
    )
    with atomic(target, "w") as file:
        nbformat.write(notebook, file)
    return problem
