"""matplotlib takes its folder, which a session can only read, as it is.

Otherwise, whenever a later cell is the first to import it, it would make another folder among the
session's files, list all fonts anew, and print four lines about that with paths of the host.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType


class ReadOnlyFolder(importlib.abc.MetaPathFinder):
    """Finds matplotlib once, as the import system does, and changes how it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "matplotlib":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        access = os.access
        os.access = lambda *_, **__: True  # asked whether the folder can be written, once
        try:
            super().exec_module(module)
            for remember in (module.get_configdir, module.get_cachedir):
                remember()
        finally:
            os.access = access
