"""What the command line is given: models, data files and method settings."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import json
import sys
import traceback
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from quincunx import models
from quincunx.engine.bare import BareModel
from quincunx.engine.errors import MethodError, QuincunxError, unknown
from quincunx.inference.archive import Archive, CheckpointError
from quincunx.inference.comparison.result import Comparison, is_comparison
from quincunx.inference.fit import Fit, load
from quincunx.inference.method import Method
from quincunx.inference.moments import Moments
from quincunx.inference.registry import resolve
from quincunx.inference.stopping import Until


def read_model(name: str, data: Path | None) -> tuple[Any, dict[str, Any] | None]:
    """A model and its arguments; a worked model brings its own unless a file is given.

    Args:
        name: `path/to/file.py:NAME`, `package.module:NAME` or the name of a worked model.
        data: a file for `read_data`.

    Raises:
        QuincunxError: no such file, module, model or data, or one that cannot be read.
    """
    arguments = None if data is None else read_data(data)
    module, _, attribute = name.rpartition(":")
    if module:
        return _from_module(module, attribute), arguments
    if name.endswith(".py"):
        raise QuincunxError(f"Which model of '{name}'? Write `{name}:NAME`.")
    worked = read_worked(name)
    return worked.model, worked.data if arguments is None else arguments


def read_worked(name: str) -> models.Worked:
    """A worked model from the catalogue.

    Raises:
        QuincunxError: an unknown name, or a data set whose package is missing.
    """
    if name not in models.names():
        near = difflib.get_close_matches(name, models.names(), n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        message = f"Unknown worked model '{name}'.{hint} `quincunx models` lists them; "
        raise QuincunxError(message + "a model of your own is `path/to/file.py:NAME`.")
    try:
        return models.load(name)
    except ImportError as error:
        raise QuincunxError(f"Model '{name}': {error}.") from error


def _from_module(module: str, attribute: str) -> Any:
    loaded = _load_file(Path(module)) if module.endswith(".py") else _load_module(module)
    if not hasattr(loaded, attribute):
        raise QuincunxError(unknown("model", attribute, _candidates(loaded), f" in '{module}'"))
    model = getattr(loaded, attribute)
    if not callable(model) and not isinstance(model, BareModel):
        kind = type(model).__name__
        raise QuincunxError(f"'{attribute}' in '{module}' is not a model but of type {kind}.")
    return model


def _candidates(module: ModuleType) -> list[str]:
    """Names that a module itself defines and that could be models."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, type)
        and (isinstance(value, BareModel) or getattr(value, "__module__", None) == module.__name__)
    ]


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise QuincunxError(f"There is no file '{path}'." + _near_file(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise QuincunxError(f"'{path}' is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise QuincunxError(_import_failure(str(path), error)) from error
    finally:
        sys.path.pop(0)
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            message = f"There is no module '{error.name}'; modules are looked for in this folder "
            raise QuincunxError(message + "and where Python is installed.") from error
        raise QuincunxError(_import_failure(name, error)) from error
    except (Exception, SystemExit) as error:
        raise QuincunxError(_import_failure(name, error)) from error
    finally:
        sys.path.pop(0)


def _import_failure(name: str, error: BaseException) -> str:
    """One line on an error that a user's module raised when it was imported."""
    frames = traceback.extract_tb(error.__traceback__)
    internal = (__file__, "<frozen", importlib.__file__)
    users = [frame for frame in frames if not frame.filename.startswith(internal)]
    where = f" ({Path(users[-1].filename).name}, line {users[-1].lineno})" if users else ""
    return f"'{name}' cannot be imported: {type(error).__name__}: {error}{where}."


def _near_file(path: Path) -> str:
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f" Did you mean '{folder / near[0]}'?" if near else ""


def read_saved(path: Path) -> Fit | Comparison:
    """A fit or a comparison from its file.

    Raises:
        QuincunxError: no such file, or one that holds neither.
    """
    if path.suffix == ".nc" and is_comparison(path):
        return Comparison.load(path)
    return load(path)


def check_resumption(folder: Path | None, *, resume: bool) -> None:
    """Refuse at once, in the command line's own words, what `infer` would refuse later.

    Raises:
        CheckpointError: nothing to resume from, or a checkpoint that is not to be resumed.
    """
    if resume and folder is None:
        raise CheckpointError("`--resume` needs `--checkpoint`, the folder to resume from.")
    if folder is not None and not resume and Archive(folder).exists:
        message = f"'{folder}' holds a checkpoint already. Continue it with `--resume`, "
        raise CheckpointError(message + "or name another folder.")


def check_script(path: Path) -> None:
    """Refuse a script that there is not.

    Raises:
        MethodError: with its path.
    """
    if not path.is_file():
        raise MethodError(f"There is no script '{path}'. Name a Python file.")


def read_store(path: Path | None, *, moments: bool) -> Path | Moments | None:
    """Where draws are to go.

    Raises:
        MethodError: two places at once.
    """
    if moments and path is not None:
        raise MethodError("`--moments` keeps no draws on disk: leave out one of it and `--store`.")
    return Moments() if moments else path


def read_until(ess: float | None, seconds: float | None) -> Until | None:
    """When to stop early.

    Raises:
        MethodError: a target that is not positive.
    """
    for option, value in (("--until-ess", ess), ("--seconds", seconds)):
        if value is not None and not value > 0:
            raise MethodError(f"`{option} {value:g}` must be positive.")
    return None if ess is None and seconds is None else Until(ess=ess, seconds=seconds)


def read_data(path: Path) -> dict[str, Any]:
    """The model's arguments from a file.

    `.json` holds an object with one entry for each argument, where `null` inside a list is NaN;
    `.csv` gives each column as an array; `.npz` gives its arrays, scalars as Python scalars.

    Raises:
        QuincunxError: no such file, another suffix, or contents that cannot be read.
    """
    readers = {".json": _read_json, ".csv": _read_csv, ".npz": _read_npz}
    if path.suffix not in readers:
        kinds = ", ".join(readers)
        raise QuincunxError(f"Data file '{path}': the suffix must be one of {kinds}.")
    if not path.is_file():
        raise QuincunxError(f"There is no data file '{path}'." + _near_file(path))
    try:
        return readers[path.suffix](path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise QuincunxError(f"Data file '{path}' cannot be read: {error}.") from error


def _read_json(path: Path) -> dict[str, Any]:
    contents = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(contents, dict):
        kind = type(contents).__name__
        message = f"Data file '{path}' holds a {kind}, not an object with the model's arguments."
        raise QuincunxError(message)
    return {name: _filled(value) for name, value in contents.items()}


def _filled(value: Any) -> Any:
    """Put NaN for the `null`s inside lists; an argument that is `null` itself stays `None`."""
    if isinstance(value, list):
        return [float("nan") if entry is None else _filled(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _filled(entry) for name, entry in value.items()}
    return value


def _read_csv(path: Path) -> dict[str, Any]:
    import pandas as pd

    table = pd.read_csv(path)
    return {str(name): table[name].to_numpy() for name in table}


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as contents:
        arrays = {name: contents[name] for name in contents}
    return {name: array if array.ndim else array.item() for name, array in arrays.items()}


def read_method(name: str, settings: Iterable[str]) -> Method:
    """A method with some of its settings given as `NAME=VALUE`.

    Raises:
        QuincunxError: an unknown method or setting, or a value of the wrong type.
    """
    method = resolve(name)
    known = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    chosen = {}
    for entry in settings:
        key, equals, text = entry.partition("=")
        if not equals:
            raise QuincunxError(f"`--set {entry}`: write NAME=VALUE.")
        if key not in known:
            raise MethodError(unknown("setting", key, known, f" of method '{name}'"))
        chosen[key] = _parse(entry, text, known[key])
    return type(method)(**chosen)


def _parse(entry: str, text: str, default: Any) -> Any:
    """A setting's value: JSON where it is JSON, else the text itself."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = {"True": True, "False": False, "None": None}.get(text, text)
    if isinstance(default, bool) or not isinstance(default, (int, float)):
        wrong = isinstance(default, bool) and not isinstance(value, bool)
        wanted = "true or false"
    elif isinstance(default, int):
        wrong, wanted = not isinstance(value, int) or isinstance(value, bool), "an integer"
    else:
        wrong = not isinstance(value, (int, float)) or isinstance(value, bool)
        wanted = "a number"
        value = value if wrong else float(value)
    if wrong:
        raise MethodError(f"`--set {entry}`: the value must be {wanted}.")
    return value
