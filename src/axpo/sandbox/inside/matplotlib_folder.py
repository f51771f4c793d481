"""Makes matplotlib use its folder as it is, although a session can only read it.

Otherwise, if a later cell were the first to import matplotlib, it would make another folder among
the session's files, list all fonts again, and print four lines about that with paths of the host.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import ModuleType


class ReadOnlyFolder(importlib.abc.MetaPathFinder):
    """A finder that finds matplotlib once, as the import system does, but with another loader."""

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
        os.access = lambda *_, **__: True  # matplotlib asks once whether it can write the folder.
        try:
            super().exec_module(module)
            for remember in (module.get_configdir, module.get_cachedir):
                remember()
        finally:
            os.access = access
