"""What is installed, for results that must say what made them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("medfedpure", "torch", "flwr", "diffusers", "timm", "adversarial-robustness-toolbox", "numpy")


def versions() -> dict[str, str]:
    """The version of Python and of every package that decides figures; "not installed" where one is missing."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
