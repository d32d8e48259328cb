"""The network modules of all model families, their assembly and their weights."""

from dynamask.models import build as build  # registers the builder that loading weights needs
