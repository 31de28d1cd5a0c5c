"""A classifier of one's own by the name of the code that builds it: "package.module:function"."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from medfedpure.core.errors import ConfigError


def own_module(named: str) -> nn.Module:
    """Import and build it. The current folder is searched first, as `python -m` does.

    Args:
        named: "package.module:name", where the name is of an nn.Module, or of a function without arguments that returns
            one; a class that is built without arguments is such a function.

    Raises:
        ConfigError: there is no such module or name, it fails, or it gives no nn.Module; the text says which.
    """
    module, _, name = named.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise ConfigError(f"a classifier is named package.module:function, as in mymodel:build; got {named!r}")
    with _from_here():
        found = _imported(module)
        for part in name.split("."):
            found = _part_of(found, part, named)
        if isinstance(found, nn.Module):
            return found
        if not callable(found):
            raise ConfigError(
                f"{named} is a {type(found).__name__}; an nn.Module is wanted, or a function that returns one"
            )
        try:
            made = found()
        except (Exception, SystemExit) as error:  # of code that is not ours
            raise ConfigError(
                f"{named}() raised {_told(error)}: a function is wanted that builds the model without arguments"
            ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{named}() returned a {type(made).__name__}; an nn.Module is wanted: return the model")
    return made


@contextmanager
def _from_here() -> Iterator[None]:
    """The current folder is the first to be searched for modules, and stays the current one."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        os.chdir(here)
        with suppress(ValueError):  # the imported code may have taken it away itself
            sys.path.remove(here)


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigError(
                f"there is no module {module}: {error.name!r} is neither in {Path.cwd()} nor installed: run the "
                "command in the folder that holds it"
            ) from error
        raise ConfigError(f"{module} is there, but what it imports is not: {_told(error)}: install it") from error
    except (Exception, SystemExit) as error:  # of code that is not ours
        raise ConfigError(f"{module} is there, but importing it raised {_told(error)}") from error


def _part_of(found: Any, name: str, named: str) -> Any:
    try:
        return getattr(found, name)
    except AttributeError:
        pass
    except Exception as error:  # of code that is not ours
        raise ConfigError(f"{named}: to look up {name!r} raised {_told(error)}") from error
    public = [key for key in vars(found) if not key.startswith("_")] if hasattr(found, "__dict__") else []
    near = difflib.get_close_matches(name, public, 1)
    hint = f"did you mean {near[0]}?" if near else f"it holds {', '.join(public[:8]) or 'nothing'}"
    raise ConfigError(f"{named}: there is no {name!r}; {hint}")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
