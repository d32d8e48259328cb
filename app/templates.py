"""The page's HTML, CSS and JavaScript.

HTML and CSS from `templates/` become part of the Gradio components; the ES modules of `static/` are served beside the
page and loaded by `module_loader`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

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


def static_route() -> Route:
    """The route that serves the modules of `static/`.

    It is not a mount, because mounts find no files behind a proxy that removes the root path from addresses.
    """
    files = {path.name: path for path in STATIC_DIR.glob("*.js")}
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}

    async def serve(request: Request) -> Response:
        path = files.get(request.path_params["name"])
        return Response(status_code=404) if path is None else FileResponse(path, 200, headers, "text/javascript")

    return Route(f"/{static_prefix()}/{{name}}", serve)


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
