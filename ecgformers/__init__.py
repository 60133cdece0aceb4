"""ECG foundation models for the Hugging Face Hub.  For research use; not a medical device.

Importing the package makes its models, processors and pipelines known to transformers, and loads none of them: each
name is loaded when it is first asked for, from where `__init__.pyi` says that it lies.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
if not (_here / "modeling").is_dir():  # a source checkout: the sub-packages lie beside this folder
    __path__.append(str(_here.parent))

_MODULES = {
    alias.name: f"{__name__}.{line.module}"
    for line in ast.parse((_here / "__init__.pyi").read_text(encoding="utf-8")).body
    if isinstance(line, ast.ImportFrom)
    for alias in line.names
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


import_module("ecgformers.auto").make_known()  # after the path above is in place
