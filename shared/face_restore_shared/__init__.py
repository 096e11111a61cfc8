"""What the GIMP plug-in and the worker both use: protocol, connection file, paths.

Standard library and msgpack only, because GIMP's own Python imports it.
"""

from face_restore_shared.version import __version__

__all__ = ["__version__"]
