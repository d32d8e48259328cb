"""The list of packages; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dynamask", "dynamask.*", "app", "app.*"]), "dynamask.checkpoints"],
    package_dir={"dynamask.checkpoints": "checkpoints"},
)
