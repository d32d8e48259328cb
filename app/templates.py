"""The page's HTML, CSS and JavaScript.

HTML and CSS from `templates/` become part of the Gradio components; the ES modules of `static/` are served beside the
page and loaded by `module_loader`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

APP_DIR = Path(__file__).resolve().parent
TEMPLATES_DIR, STATIC_DIR = APP_DIR / "templates", APP_DIR / "static"


def template(*names: str) -> str:
    """Text of one or more files of `templates/`."""
    return "\n".join((TEMPLATES_DIR / name).read_text(encoding="utf-8") for name in names)


def static_prefix() -> str:
    """Path of `static/` below the page's address; it changes with the files: browsers never mix two versions."""
    digest = hashlib.sha256()
    for path in sorted(STATIC_DIR.glob("*.js")):
        digest.update(path.name.encode() + path.read_bytes())
    return f"dynamask-{digest.hexdigest()[:12]}"


def static_route() -> Mount:
    """The route that serves `static/`."""
    return Mount(f"/{static_prefix()}", StaticFiles(directory=STATIC_DIR))


def module_loader(name: str) -> str:
    """JavaScript for `js_on_load` of a `gr.HTML`: loads `static/NAME.js` and calls its `start(host)`.

    The host holds the component's `element`, its `props` (`value` is what Python sends), `request(data)`, which
    triggers the component's `select` event, and Gradio's `upload(file)` and `watch(prop, callback)`. The address is
    relative to the page, as those of Gradio's own files are, so that it holds behind a root path.
    """
    return f"""
const host = {{ element, props, upload, watch, request: (data) => trigger("select", data) }};
import(new URL("{static_prefix()}/{name}.js", document.baseURI))
  .then((module) => module.start(host))
  .catch((error) => element.prepend(`This part of the page did not load (${{error.message}}); reload the page.`));
"""
