"""What of a suite's results is small enough, and worth, to be kept in the repository."""

import shutil
from contextlib import suppress
from pathlib import Path

from pocketrec.errors import UserError
from pocketrec.report import plots
from pocketrec.report.dashboard import dashboards
from pocketrec.report.results import collect, load_results
from pocketrec.report.site import index


def publish(suite_dir: str | Path, target: str | Path, question: str | None = None, own: str | None = None) -> Path:
    """Copy a suite's records, measurements and one executed notebook a method and dataset; build page and dashboards.

    Models, predictions and the other notebooks stay behind: a suite of hundreds of runs is then a few megabytes.
    The old content of `target` is replaced only when the new one is whole. Returns the page.

    Raises:
        UserError: when the suite has no finished run.
    """
    suite_dir, target = Path(suite_dir), Path(target)
    results = load_results(suite_dir)
    done = results[results["status"] == "done"]
    if done.empty:
        raise UserError(f"{suite_dir}: no run is done, so there is nothing to publish")
    hardest = done.sort_values(["ratio_requested", "run"], ascending=[False, True])
    kept = set(hardest.groupby(["method", "dataset"])["run"].first())
    new = target.parent / ".new" / target.name  # pages take the suite's name from their folder
    shutil.rmtree(new, ignore_errors=True)
    for record in suite_dir.glob("runs/*/*/*/record.json"):
        folder = record.parent.relative_to(suite_dir)
        (new / folder).mkdir(parents=True)
        names = ["record.json", *(["run.ipynb", "run.html"] if str(folder.relative_to("runs")) in kept else [])]
        for name in names:
            if (suite_dir / folder / name).exists():
                shutil.copyfile(suite_dir / folder / name, new / folder / name)
    if (suite_dir / "measured").is_dir():
        shutil.copytree(suite_dir / "measured", new / "measured")
    collect(new)
    dashboards(new, own=own or target.name)
    index(new, title=target.name, question=question)
    plots.auc_vs_ratio(results).savefig(new / "auc_vs_ratio.png", dpi=110)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)
    with suppress(OSError):  # another suite is being published
        new.parent.rmdir()
    return target / "index.html"
