"""Errors a user may see: what happened and why, and what can be done about it."""

from __future__ import annotations


class FaceRestoreError(Exception):
    """Base of every error that is meant for a person.

    Attributes:
        code: stable kebab-case identifier, the same on the wire and in ``--format json``.
        message: one sentence saying what happened and why.
        hint: what the user can do next; may be empty.
    """

    default_code = "error"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class SchemaError(FaceRestoreError):
    """A message does not have the form the protocol asks for."""

    default_code = "bad-request"


class ConnectionFileError(FaceRestoreError):
    """The worker's connection file is malformed or cannot be trusted."""

    default_code = "connection-file"
