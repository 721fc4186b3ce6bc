"""Write the figures of docs/results into README.md and the pages of docs.

    python -m benchmarks.documents
    python -m benchmarks.documents --check

A page says where a figure goes, `<!-- figure: NAME -->…<!-- end -->` in a line of text, and where tables go,
`<!-- tables: NAME -->` and `<!-- end -->` in lines of their own. What stands between is replaced. The names
are those of `benchmarks.documents.figures` and `benchmarks.documents.tables`. With `--check` nothing is
written: the program names the figures that are not what docs/results says, and ends with status 1.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.common.environment import ROOT
from benchmarks.documents.pages import pages, updated


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; name what is out of date")
    arguments = parser.parse_args(argv)
    out_of_date = []
    for page in pages():
        text = page.read_text()
        new, changed = updated(text)
        out_of_date += [f"{_name(page)}: {name}" for name in changed]
        if changed and not arguments.check:
            page.write_text(new)
    if out_of_date:
        print("\n".join(out_of_date))
    if out_of_date and arguments.check:
        sys.exit("these figures are not what docs/results says; python -m benchmarks.documents writes them")


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
