"""From records to tables, pictures and pages. Reads what runs left behind; trains nothing, needs no torch.

    from pocketrec import report
    report.load_results("results/quick")

A module is imported when one of its functions is first named, so that reading results loads no plotting.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "about": "method",
    "bundle": "bundling",
    "changes": "comparison",
    "choices": "tables",
    "collect": "results",
    "compare": "comparison",
    "comparison_page": "dashboard",
    "convert": "pages",
    "dashboards": "dashboard",
    "differences": "statistics",
    "explore": "widgets",
    "headline": "tables",
    "highest_ratio": "statistics",
    "index": "site",
    "knobs": "method",
    "load_curves": "results",
    "load_measured": "results",
    "load_results": "results",
    "load_searches": "results",
    "load_speed": "results",
    "numbers": "tables",
    "publish": "publishing",
    "reach": "tables",
    "sizes": "tables",
    "standing": "tables",
    "summary": "statistics",
    "surroundings": "comparison",
    "tied_with_best": "statistics",
    "unpacked": "results",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pocketrec.report' has no attribute {name!r}")
    return getattr(import_module(f"pocketrec.report.{_HOME[name]}"), name)
