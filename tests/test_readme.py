"""The README says what the code does."""

import re
from pathlib import Path

from pocketrec.suite.sizes import markdown, overview

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_table_of_methods_is_that_of_the_code():
    (table,) = re.findall(r"<!-- methods -->\n(.*?)\n<!-- /methods -->", README, re.DOTALL)
    assert table == markdown(overview()), "paste the output of `pocketrec methods` between the marks"


def test_every_method_names_its_paper():
    table = overview().set_index("method")
    assert (table.drop("low_dim").paper != "").all()


def test_links_and_pictures_are_there():
    root = Path(__file__).parents[1]
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links and all((root / link).exists() for link in links)
