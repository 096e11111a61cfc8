"""The offline bundle: everything a machine without a network needs, in one archive."""
