"""The web app of DynaMask: `python -m app`."""
