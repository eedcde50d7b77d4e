"""The file that defines a pipeline, for the terminal."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from rxbus._console import Unusable
from rxbus.pipeline._pipeline import Pipeline


def load(file: Path) -> Pipeline:
    """Gives the `pipeline` of a file.

    Raises:
        Unusable: There is no such file, it fails, or it has no pipeline.
    """
    if not file.is_file():
        raise Unusable(f"there is no file {file}")
    pipeline = getattr(_module(file.resolve()), "pipeline", None)
    if not isinstance(pipeline, Pipeline):
        what = "nothing of that name" if pipeline is None else f"a {type(pipeline).__name__}"
        raise Unusable(f"{file} has no rxbus.pipeline.Pipeline as its global 'pipeline', but {what}")
    return pipeline


def _module(file: Path) -> ModuleType:
    name = file.stem if file.stem not in sys.modules else f"{file.stem} of rxbus pipeline"
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: it is to define a pipeline, not to end
        raise Unusable(f"{file} fails{_where(error, file)}: {type(error).__name__}: {error}") from error
    return module


def _where(error: BaseException, file: Path) -> str:
    """Names the line of the file that an error came from."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f" in line {line}"
