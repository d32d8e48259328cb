"""Write the notebooks from their sources, and HTML pages and thumbnails from the notebooks.

    python notebooks/make.py sync              NN_topic.py (jupytext's py:percent) → NN_topic.ipynb, without outputs
    python notebooks/make.py check             exit code 2 if a notebook differs from its source or holds outputs
    python notebooks/make.py html --out DIR    run them (short with FAST=1) and write pages that need no network
    python notebooks/make.py thumbnails        a picture of each notebook, and the table in README.md

`html` and `thumbnails` take the numbers of notebooks (00 04 …); by default all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from paired import NotebookError, check, sources, sync


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="notebooks/make.py", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sync", help="sources → notebooks, outputs stripped")
    commands.add_parser("check", help="exit with code 2 if a notebook differs from its source or holds outputs")
    html = commands.add_parser("html", help="run the notebooks and write pages that need no network")
    html.add_argument("--out", type=Path, required=True, help="folder of the pages")
    html.add_argument("--theme", choices=("light", "dark"), default="light")
    thumbnails = commands.add_parser("thumbnails", help="pictures for the syllabus, and its table in README.md")
    thumbnails.add_argument("--pages", type=Path, help="folder with pages of `html`, instead of running the notebooks")
    for command in (html, thumbnails):
        command.add_argument("numbers", nargs="*", metavar="NN", help="numbers of notebooks (default: all)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit code: 0, or 2 after one line on stderr."""
    options = parse_arguments(arguments)
    try:
        if options.command == "sync":
            for path in sync(sources()):
                print(f"wrote {path.name}")
        elif options.command == "check":
            check()
            print(f"{len(sources())} notebooks equal their sources")
        else:
            chosen = sources(options.numbers)
            import pages  # needs nbconvert and, for pictures, playwright

            if options.command == "html":
                pages.write_pages(chosen, options.out, options.theme)
            else:
                pages.write_thumbnails(chosen, options.pages)
    except NotebookError as error:
        print(f"notebooks/make.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
