"""The environment in which notebooks are run by commands: this checkout's code, nobody's personal settings."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Folder that holds the package: the checkout."""


def kernel_variables(home: Path, short: bool = False) -> dict[str, str]:
    """What a kernel must find in its environment, besides what is there.

    Args:
        home: an empty folder for what Jupyter and IPython read and write.
        short: set ``FAST=1`` and one thread, as the tests run notebooks.
    """
    known = os.environ.get("PYTHONPATH", "")
    variables = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *([known] if known else [])]),
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this very Python, whatever the user has installed
        "JUPYTER_DATA_DIR": str(home),
        "JUPYTER_CONFIG_DIR": str(home),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    return {**variables, "FAST": "1", "OMP_NUM_THREADS": "1"} if short else variables
