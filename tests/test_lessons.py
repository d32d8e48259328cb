"""What all notebooks import: runs in two lengths, and the photographs."""

import os
import subprocess
import sys

import pytest
from lessons import milliseconds, photograph
from lessons.kernels import kernel_variables

from dynamask.structures import DynaMaskError


@pytest.mark.parametrize(("value", "expected"), [("1", "short"), ("0", "full"), ("", "full"), ("true", "short")])
def test_the_environment_decides_on_the_length(value, expected, tmp_path):
    code = "from lessons import fast; print(fast('short', 'full'))"
    environment = os.environ | kernel_variables(tmp_path) | {"FAST": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == expected, done.stderr


def test_calls_are_timed():
    calls = []
    assert milliseconds(lambda: calls.append(1), repeats=3) >= 0 and len(calls) == 4


def test_photographs_by_name_with_and_without_ending():
    assert photograph("astronaut").name == "astronaut.jpg" and photograph("astronaut").is_file()
    assert photograph("astronaut.jpg") == photograph("astronaut")
    with pytest.raises(DynaMaskError, match="no photograph called 'cat'; choose one of: .*astronaut"):
        photograph("cat")


def test_kernels_find_this_checkout_first(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    variables = kernel_variables(tmp_path, short=True)
    first, second, *rest = variables["PYTHONPATH"].split(os.pathsep)
    assert os.path.isdir(os.path.join(first, "dynamask")) and os.path.isdir(os.path.join(second, "lessons"))
    assert rest == ["elsewhere"]
    assert variables["FAST"] == "1" and "FAST" not in kernel_variables(tmp_path)
