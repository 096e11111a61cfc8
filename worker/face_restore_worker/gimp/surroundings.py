"""What the search for GIMP looks at: platform, home, environment. Tests bring their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from face_restore_shared.errors import FaceRestoreError

FLATPAK_ID = "org.gimp.GIMP"


class GimpError(FaceRestoreError):
    """The plug-in cannot be installed, removed or tested."""

    default_code = "gimp"


@dataclass(frozen=True)
class Surroundings:
    """platform: as sys.platform. system_root: what stands before /snap and /Applications."""

    platform: str
    home: Path
    env: Mapping[str, str]
    system_root: Path = Path("/")

    @classmethod
    def here(cls) -> Surroundings:
        """This machine and user."""
        home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises without HOME
        return cls(sys.platform, home, os.environ)

    def folder(self, variable: str, default: str) -> Path:
        """The folder an environment variable names, else one below the home folder."""
        value = Path(self.env.get(variable, ""))
        return value if value.is_absolute() else self.home / default

    def search_path(self) -> list[Path]:
        """The folders programs are looked for in."""
        return [Path(part) for part in self.env.get("PATH", "").split(os.pathsep) if part]
