"""Makes the GIMP plug-in's modules importable; those that need GIMP fail without it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "plugin_gimp" / "face_restore"))
sys.path.insert(0, str(ROOT / "plugin_gimp"))
