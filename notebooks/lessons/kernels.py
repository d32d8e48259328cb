"""Environment of kernels that are started by a command: the code of this checkout, no personal settings."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


def kernel_variables(home: Path, short: bool = False) -> dict[str, str]:
    """Return the environment variables that a kernel needs in addition to the current ones.

    Args:
        home: empty folder for the files of Jupyter and IPython.
        short: set ``FAST=1`` and one thread, as the tests do.
    """
    paths = [str(ROOT), str(ROOT / "notebooks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        "PYTHONPATH": os.pathsep.join(paths),
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this Python, whatever the user has installed
        "JUPYTER_DATA_DIR": str(home),
        "JUPYTER_CONFIG_DIR": str(home),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    return {**variables, "FAST": "1", "OMP_NUM_THREADS": "1"} if short else variables
