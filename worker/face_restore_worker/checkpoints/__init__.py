"""Model files of every kind, read as data: no code from a file is ever run."""
