"""Executed notebooks as HTML pages that need nothing but themselves."""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from html import unescape
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from pygments.formatters import HtmlFormatter
from tqdm import tqdm

from pocketrec.files import atomic

_HEADING = re.compile(r"(<h1[^>]*>)(.*?)(</h1>)", re.DOTALL)


def convert(suite_dir: str | Path, jobs: int | None = None, progress: bool = True) -> list[Path]:
    """Write `run.html` beside each executed notebook that is newer than its page; return the pages written.

    A notebook that cannot be read, as after a full disk, gets a page that says so.
    """
    suite_dir = Path(suite_dir)
    notebooks = sorted([*suite_dir.glob("runs/**/run.ipynb"), *suite_dir.glob("dashboards/*.ipynb")])
    stale = [path for path in notebooks if not _hidden(path.relative_to(suite_dir)) and _stale(path)]
    if not stale:
        return []
    jobs = min(jobs or os.cpu_count() or 1, len(stale))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        done: Iterable[Path] = pool.map(page, stale, chunksize=min(8, -(-len(stale) // jobs)))
        return list(tqdm(done, "notebooks to HTML", len(stale), unit="page", disable=not progress))


def page(notebook: Path) -> Path:
    """Write one executed notebook as HTML beside it and return that path."""
    suite, index, name = _place(notebook)
    try:
        body, error = _body(notebook), ""
    except Exception as problem:  # whatever a damaged notebook raises, its page is where to say it
        body, error = "", f"{notebook.name} cannot be read: {type(problem).__name__}: {problem}"
    heading = _HEADING.search(body)
    question = unescape(re.sub(r"<.*?>", "", heading[2])) if heading else notebook.stem
    if name:
        body = _HEADING.sub(rf'\1<span class="name">{escape(name)}</span>\2\3', body, count=1)
    html = template("notebook.html.j2").render(
        title=" – ".join(part for part in (name, question, suite) if part),
        suite=suite,
        index=quote(index),
        body=Markup(body),
        error=error,
        code_css=code_css(),
    )
    path = notebook.with_suffix(".html")
    with atomic(path, "w") as file:
        file.write(html)
    return path


def _place(notebook: Path) -> tuple[str, str, str]:
    """Return a notebook's suite, the way to that suite's page, and the name of its run or method, where it has them."""
    folder = notebook.absolute().parent
    if notebook.name == "run.ipynb" and folder.parents[2].name == "runs":
        up, name = 4, " · ".join(folder.parts[-3:])
    elif folder.name == "dashboards":
        up, name = 1, notebook.stem.partition("dashboard_method_")[2]
    else:
        return "", "", ""
    suite = folder.parents[up - 1].name.removeprefix(".").removesuffix(".new")  # `publish` builds in .<suite>.new
    return suite, "../" * up + "index.html", name


def template(name: str):
    """Return a template of this package; names it does not know are errors and text is escaped."""
    loader = PackageLoader("pocketrec.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


@cache
def code_css() -> str:
    """Return the colours of highlighted code, light and dark."""
    light = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


@cache
def _exporter():
    from nbconvert import HTMLExporter  # takes a second to import, and only the converting needs it

    return HTMLExporter(template_name="basic", embed_images=True, exclude_anchor_links=True)


def _body(notebook: Path) -> str:
    return _exporter().from_filename(str(notebook))[0]


def _stale(notebook: Path) -> bool:
    html = notebook.with_suffix(".html")
    return not html.exists() or html.stat().st_mtime < notebook.stat().st_mtime


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
