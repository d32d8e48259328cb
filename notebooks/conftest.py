"""Run the notebooks under pytest: short, on one thread, with the code of this checkout and no personal settings."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from lessons.kernels import kernel_variables


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Set the environment that the kernel of each notebook inherits; nbmake's items take no fixtures."""
    before = dict(os.environ)
    home = item.config._tmp_path_factory.getbasetemp() / "kernel"
    home.mkdir(exist_ok=True)
    os.environ.update(kernel_variables(home, short=True))
    try:
        return (yield)
    finally:
        os.environ.clear()
        os.environ.update(before)
