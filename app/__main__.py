"""Start the web app: `python -m app`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as those of the `dynamask` command."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see python -m app -h")


def fail(message: str) -> NoReturn:
    """End with exit code 2 and one line on stderr."""
    line = " ".join(message.split())
    print(f"dynamask: error: {line}", file=sys.stderr)
    raise SystemExit(2)


def port_number(text: str) -> int:
    """A port between 1 and 65535."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 1 to 65535")
    return int(text)


def login(text: str) -> tuple[str, str]:
    """USER:PASSWORD as (user, password)."""
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise argparse.ArgumentTypeError("give USER:PASSWORD, both not empty")
    return user, password


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The flags of the app."""
    parser = OneLineParser(
        prog="python -m app",
        description="Serve the DynaMask web app: open a picture, move the budget, and see which mask resolution the "
        "switch chooses for each object.",
    )
    parser.add_argument("--weights", default="things", metavar="W", help="bundled name or .safetensors file (things)")
    parser.add_argument("--device", default="auto", help="auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, … (auto)")
    parser.add_argument("--backend", help="torch or openvino (openvino on the CPU if it is installed)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (127.0.0.1)")
    parser.add_argument("--port", type=port_number, help="port to listen on (the first free one from 7860)")
    parser.add_argument("--share", action="store_true", help="create a public link through Gradio's tunnel")
    parser.add_argument("--auth", type=login, metavar="USER:PASSWORD", help="require a login")
    return parser.parse_args(arguments)


def warn_if_open(options: argparse.Namespace) -> None:
    """Print a warning if anybody on the network can use the page without a login."""
    own = options.host in ("localhost", "::1", "[::1]") or options.host.startswith("127.")
    if options.auth is None and (options.share or not own):
        flag = "--share" if options.share else f"--host {options.host}"
        print(
            f"dynamask: warning: with {flag}, everybody who can reach this address can use the app; "
            "add --auth USER:PASSWORD to require a login",
            file=sys.stderr,
        )


def main(arguments: list[str] | None = None) -> None:
    """Load the weights, analyse the first picture and serve the page until interrupted."""
    options = parse_arguments(arguments)

    if importlib.util.find_spec("gradio") is None:
        fail("the app needs Gradio; install it with `pip install 'dynamask[app]'`")

    from dynamask.structures import DynaMaskError

    try:
        warn_if_open(options)
        from app.catalog import open_catalog
        from app.handlers import ExploreHandlers
        from app.source_pictures import find_examples
        from dynamask.engine.memory import keep_freed_memory

        keep_freed_memory()
        explorer = ExploreHandlers(open_catalog(options.weights, options.device, options.backend), find_examples())
        from app import ui

        page = ui.build(explorer)
    except DynaMaskError as error:
        fail(str(error))
    try:
        ui.launch(page, server_name=options.host, server_port=options.port, share=options.share, auth=options.auth)
    except OSError as error:
        fail(f"the page cannot be served on {options.host}: {error}; give another --host or --port")


if __name__ == "__main__":
    main()
