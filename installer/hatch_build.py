"""Build hook: compile the kernels into a checkout that is installed in place.

Wheels stay the same for every machine: there `python -m face_restore_worker.network.native.build`
compiles after installing. An installation never fails here.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("worker", "face_restore_worker", "network", "native", "build.py")


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Found by hatchling in this file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before each build; `version` is "editable" for an installation in place."""
        if version == "editable":
            module = runpy.run_path(str(Path(self.root) / NATIVE))
            self.app.display_info(module["build"]())
