"""How the tests run the notebooks: short, on one thread, with this checkout's code and nobody's personal settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def kernel_variables(home: Path) -> dict[str, str]:
    """Environment of a kernel: short runs, one thread, this checkout first, the kernel of this very Python."""
    known = os.environ.get("PYTHONPATH", "")
    return {
        "FAST": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *([known] if known else [])]),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_DATA_DIR": str(home),
        "JUPYTER_CONFIG_DIR": str(home),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """nbmake's items are no functions and take no fixtures, so their environment is set here."""
    before = dict(os.environ)
    home = item.config._tmp_path_factory.getbasetemp() / "kernel"
    home.mkdir(exist_ok=True)
    os.environ.update(kernel_variables(home))
    try:
        return (yield)
    finally:
        os.environ.clear()
        os.environ.update(before)
