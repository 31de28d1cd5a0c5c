"""What the three budgets of `defend` mean: how long a part is trained where its configuration does not say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from medfedpure.core.config import Config
from medfedpure.core.errors import ConfigError
from medfedpure.core.registry import registry
from medfedpure.core.settings import TrainingConfig

Budget = Literal["quick", "standard", "thorough"]
STEPS: Mapping[str, float] = {"quick": 0.2, "standard": 1.0, "thorough": 4.0}
"""Steps of a training as a share of the plugin's own."""

QUICK_BATCH = 16
_SMALL = {
    "model": {"widths": (16, 32)},
    "training": {"steps": 1200, "batch_size": 8, "learning_rate": 3e-3, "ema": 0.99},
}
QUICK: Mapping[tuple[str, str], Mapping[str, Any]] = {("purifier", "ddpm"): _SMALL, ("purifier", "diffpure"): _SMALL}
"""Networks that are too large for a minute are smaller ones under "quick"."""


def with_budget(
    kind: str, plugin: str, given: Config | Mapping[str, Any] | None, budget: Budget
) -> Config | Mapping[str, Any] | None:
    """The configuration of a part under a budget; what is given wins, key by key, also inside its sections.

    "standard" changes nothing, and neither does any budget where a plugin's configuration has no `training`.

    Args:
        kind: of the plugin.
        plugin: its name.
        given: by the caller.
        budget: "quick", "standard" or "thorough".

    Raises:
        ConfigError: no such budget.
        UnknownPluginError, MissingExtraError: no such plugin, or not here.
    """
    if budget not in get_args(Budget):
        raise ConfigError(f"no budget is named {budget!r}; the budgets are {', '.join(get_args(Budget))}")
    field = registry().load(kind, plugin).Config.model_fields.get("training")
    usual = None if field is None else field.get_default(call_default_factory=True)
    if budget == "standard" or not isinstance(usual, TrainingConfig):
        return given
    training = {**usual.model_dump(exclude_unset=True), "steps": math.ceil(STEPS[budget] * usual.steps)}
    effort: dict[str, Any] = {"training": training}
    if budget == "quick":
        training["batch_size"] = min(QUICK_BATCH, usual.batch_size)
        effort = _merged(effort, QUICK.get((kind, plugin), {}))
    return _merged(effort, _plain(given or {}))


def _plain(value: Config | Mapping[str, Any]) -> Mapping[str, Any]:
    """What was said of a configuration, defaults left out."""
    return value.model_dump(exclude_unset=True) if isinstance(value, Config) else value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, and `over` where they differ."""
    found = dict(base)
    for key, value in over.items():
        inner = found.get(key)
        nested = isinstance(value, Mapping | Config) and isinstance(inner, Mapping)
        found[key] = _merged(inner, _plain(value)) if nested else value  # type: ignore[arg-type]
    return found
