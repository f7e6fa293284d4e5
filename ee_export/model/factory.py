"""Call a user's function that makes a model, named ``module:function`` or ``file.py:function``."""

import contextlib
import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ee_export.errors import BadModel, EeError, is_fault, one_line, printable, shorten
from ee_export.model.parts import PartedModel


def is_factory(name: str) -> bool:
    """Return True for a name ``module:function`` or ``file.py:function`` that is no existing path."""
    return ":" in name and not Path(name).exists()


def call_factory(name: str) -> PartedModel:
    """Call the function and return its model. This runs the user's code.

    The code's output goes to stderr.

    Args:
        name: ``module:function``, a module of the current folder or an installed one, or ``path/to/file.py:function``.

    Raises:
        BadModel: there is no such module or function, it raises an exception, or it returns something else. Names the
            line of the user's code.
    """
    where, _, function_name = name.rpartition(":")
    if not where or not function_name.isidentifier():
        raise BadModel(f"{printable(shorten(name))}: expected module:function, such as my_module:make_model")
    with contextlib.redirect_stdout(sys.stderr):
        module = _run(lambda: _import(where), where)
        function = getattr(module, function_name, None)
        if not callable(function):
            known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            near = difflib.get_close_matches(function_name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; write a function that returns a PartedModel"
            raise BadModel(f"{name}: {where} has no function {function_name}{hint}")
        model = _run(function, name)
    if not isinstance(model, PartedModel):
        raise BadModel(
            f"{name}: returns {type(model).__name__}, expected a PartedModel; return "
            "ee_export.export.PartedModel(parts=…, exits=…, labels=…, module=…)"
        )
    return model


def _import(where: str) -> ModuleType:
    if not where.endswith(".py"):
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not (where == error.name or where.startswith(f"{error.name}.")):
                raise
            raise BadModel(
                f"{where}: no such module in {Path.cwd()} and none installed; name a module, or a file as in path/to/file.py:make_model"
            ) from None
    path = Path(where).resolve()
    if not path.is_file():
        raise BadModel(f"{where}: no such file")
    # As for a script, the modules beside it can be imported.
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickles of the module need it there
    spec.loader.exec_module(module)
    return module


def _run(call: Callable[[], Any], name: str) -> Any:
    """Run the user's code. Its exceptions become one line with the place that raised them."""
    try:
        return call()
    except EeError:
        raise
    except BaseException as error:
        if not is_fault(error) and not isinstance(error, SystemExit):
            raise
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename != __file__ and not frame.filename.startswith("<")
        ]
        place = f" at {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        raise BadModel(f"{name}: raises {type(error).__name__}{place}: {one_line(error, 300)}; mend it") from error
