#!/usr/bin/env python3
"""Restore Faces for GIMP 3: registers the procedures; everything else is in restore_faces/."""

import sys
from pathlib import Path

# GIMP starts this file by its path; the installer puts face_restore_shared beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import gi

gi.require_version("Gimp", "3.0")
gi.require_version("GimpUi", "3.0")
gi.require_version("Gegl", "0.4")
gi.require_version("Gtk", "3.0")
from gi.repository import Gimp  # noqa: E402
from restore_faces import bundled  # noqa: E402

bundled.prepare()

from restore_faces.procedures import FaceRestore  # noqa: E402

if __name__ == "__main__":
    Gimp.main(FaceRestore.__gtype__, sys.argv)
