"""A paper's claim beside what was found here, and what follows: the last table of each paper's notebook."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pandas as pd
from pandas.io.formats.style import Styler

HOLDS, FAILS, UNTESTED = "holds here", "does not hold here", "cannot be tested here"
_COLOURS = {HOLDS: "#0b7a4b", FAILS: "#c2342b", UNTESTED: "#667380"}


@dataclass(frozen=True)
class Verdict:
    """One claim put to the test.

    Attributes:
        claim: in the words of whoever has not read the paper.
        published: the figure with its source.
        here: what was measured, with its interval, or why nothing was.
        verdict: `HOLDS`, `FAILS` or `UNTESTED`.
        needs: what a test would take, where there is none here.
        command: that runs it.
    """

    claim: str
    published: str
    here: str
    verdict: str
    needs: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        """Refuse a fourth answer."""
        if self.verdict not in _COLOURS:
            raise ValueError(f"a verdict is one of {', '.join(_COLOURS)}; got {self.verdict!r}")


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
    """Say in one line how the claims fared: `2 hold here, 1 does not hold here, 1 cannot be tested here`."""
    found = [verdict.verdict for verdict in verdicts]
    plural = {HOLDS: ("holds here", "hold here"), FAILS: ("does not hold here", "do not hold here")}
    parts = []
    for verdict in (HOLDS, FAILS, UNTESTED):
        if count := found.count(verdict):
            one, many = plural.get(verdict, (verdict, verdict))
            parts.append(f"{count} {one if count == 1 else many}")
    return ", ".join(parts) or "no claim was tested"
