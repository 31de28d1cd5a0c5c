"""Self-contained HTML pages from the templates beside this file: no network, light, dark and print."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Mapping
from typing import Any

from medfedpure.core.errors import MissingExtraError


def render(template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None) -> str:
    """A page as text; every value in it is escaped unless the template says that it is safe.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("the page needs jinja2: pip install 'medfedpure[report]'") from error
    folder = importlib.resources.files(__package__)
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(filters or {})
    return environment.get_template(template).render(values)
