"""Imported before flwr: what must be set, or be there, before Flower loads.

Flower and Ray try to reach the network by themselves (telemetry, an update check, installing an
app's dependencies, usage statistics, rebuilding the environment of a `uv run` for its workers). The
switches against that are set here, unless the environment already decides.
"""

from __future__ import annotations

import importlib.util
import os

from medfedpure.core.errors import MissingExtraError

SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

for _name, _value in SWITCHES.items():
    os.environ.setdefault(_name, _value)

if importlib.util.find_spec("flwr") is None:
    raise MissingExtraError("federated training needs Flower: pip install 'medfedpure[federated]'")
