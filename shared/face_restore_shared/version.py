"""The one place that holds the version of plug-in, worker and command line."""

__version__ = "0.1.0"
