"""A paper's claim beside what was found here, and what follows: the last table of each paper's notebook."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import inf

import pandas as pd
from pandas.io.formats.style import Styler

HOLDS, FAILS = "holds here", "does not hold here"
UNDECIDED = "undecided here"  # tested, and the interval reaches across what was claimed
UNTESTED = "cannot be tested here"  # not run, or this machine or data cannot show it
_COLOURS = {HOLDS: "#0b7a4b", FAILS: "#c2342b", UNDECIDED: "#8a6100", UNTESTED: "#667380"}


@dataclass(frozen=True)
class Verdict:
    """One claim put to the test.

    Attributes:
        claim: in the words of whoever has not read the paper.
        published: the figure with its source.
        here: what was measured, with its interval, or why nothing was.
        verdict: `HOLDS`, `FAILS`, `UNDECIDED` or `UNTESTED`.
        needs: what a test, or a decision, would take.
        command: that runs it.
    """

    claim: str
    published: str
    here: str
    verdict: str
    needs: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        """Refuse any other answer."""
        if self.verdict not in _COLOURS:
            raise ValueError(f"a verdict is one of {', '.join(_COLOURS)}; got {self.verdict!r}")


def by_interval(low: Iterable[float], high: Iterable[float], most: float = inf, least: float = -inf) -> str:
    """Judge a claim that quantities are at most `most` and at least `least`, by the intervals of all of them.

    It holds if all intervals lie inside, fails if one lies outside altogether, and is undecided otherwise: also where
    an interval is not known (NaN), or there is none.
    """
    bounds = list(zip(low, high, strict=True))
    if any(bottom > most or top < least for bottom, top in bounds):
        return FAILS
    return HOLDS if bounds and all(least <= bottom and top <= most for bottom, top in bounds) else UNDECIDED


def table(verdicts: Iterable[Verdict]) -> Styler:
    """Lay verdicts out for people, one row a claim; columns that are empty everywhere are left out."""
    frame = pd.DataFrame([asdict(verdict) for verdict in verdicts], columns=list(Verdict.__dataclass_fields__))
    always = ["claim", "verdict", "here", "published"]
    frame = frame[[*always, *(name for name in ("needs", "command") if (frame[name] != "").any())]]
    wrapped = {"text-align": "left", "vertical-align": "top", "white-space": "normal", "min-width": "7em"}
    styled = frame.style.hide(axis="index").set_properties(**wrapped)
    styled = styled.map(lambda verdict: f"color: {_COLOURS[verdict]}; font-weight: bold", subset=["verdict"])
    return styled.set_table_styles([{"selector": "th", "props": "text-align: left"}])


def tally(verdicts: Iterable[Verdict]) -> str:
    """Say in one line how the claims fared: `2 hold here, 1 does not hold here, 1 undecided here`."""
    found = [verdict.verdict for verdict in verdicts]
    plural = {HOLDS: ("holds here", "hold here"), FAILS: ("does not hold here", "do not hold here")}
    parts = []
    for verdict in _COLOURS:
        if count := found.count(verdict):
            one, many = plural.get(verdict, (verdict, verdict))
            parts.append(f"{count} {one if count == 1 else many}")
    return ", ".join(parts) or "no claim was tested"
