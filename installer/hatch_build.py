"""Build hook: compile the kernels into a checkout that is installed in place.

Wheels stay the same for every machine: there `python -m face_restore_worker.network.native.build`
compiles after installing. An installation never fails here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("worker", "face_restore_worker", "network", "native", "build.py")


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Found by hatchling in this file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before each build; `version` is "editable" for an installation in place."""
        if version == "editable":
            spec = importlib.util.spec_from_file_location("build_kernels", Path(self.root, NATIVE))
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self.app.display_info(module.build())
