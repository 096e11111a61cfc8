"""Bringing the plug-in into GIMP."""
