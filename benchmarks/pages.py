"""Tables that a script measures, printed or put into a page of ``docs``."""

import argparse
from collections.abc import Callable
from pathlib import Path

from taskformer.files import write_text

END = "<!-- end -->\n"


def print_or_replace(about: str, begin: str, tables: Callable[[], str]) -> None:
    """Print tables, or, with ``--page FILE``, replace those of a page.

    Args:
        about: The script's docstring.
        begin: The line of the page after which they begin; they end before :data:`END`.
        tables: Makes them.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--page", type=Path, help="page whose tables are replaced")
    page = parser.parse_args().page
    if page is None:
        print(tables())
        return
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    write_text(page, f"{before}{begin}\n{tables()}\n{END}{rest.partition(END)[2]}")
