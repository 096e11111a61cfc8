"""The small messages: hello, cancel, and what the worker says while a job is with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from face_restore_shared import fields as check
from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.options import MAX_FACES, field_names

MAX_ID = 64


def request_id(name: str, value: object) -> str:
    """A request's id: 1 to 64 characters, chosen by the client, unique among its open jobs."""
    return check.name_text(name, value, MAX_ID)


class _Plain:
    """to_wire and from_wire for classes whose fields are plain values."""

    def to_wire(self) -> dict[str, Any]:
        """As a map of plain values."""
        return {name: getattr(self, name) for name in field_names(type(self))}


@dataclass(frozen=True)
class Hello(_Plain):
    """client: who is speaking, for the log, e.g. "face-restore 0.1.0"."""

    client: str = ""

    def __post_init__(self) -> None:
        check.text("client", self.client, 200)

    @classmethod
    def from_wire(cls, data: object) -> Hello:
        """Checked from a map; raises SchemaError."""
        return cls(**check.fields_of("hello", data, field_names(cls), strict=True))


@dataclass(frozen=True)
class HelloReply(_Plain):
    """The worker's version, protocol version, process id and state, and the limits it holds to.

    max_jobs: open at a time for one client. max_bytes: of pixels in all waiting jobs.
    """

    version: str
    protocol: int
    pid: int
    state: str = "ready"
    max_jobs: int = 0
    max_bytes: int = 0

    def __post_init__(self) -> None:
        check.text("version", self.version, 100)
        check.integer("protocol", self.protocol, 0, 1_000_000)
        check.integer("pid", self.pid, 1, 1 << 53)
        check.name_text("state", self.state, 100)
        check.integer("max_jobs", self.max_jobs, 0, 1 << 53)
        check.integer("max_bytes", self.max_bytes, 0, 1 << 53)

    @classmethod
    def from_wire(cls, data: object) -> HelloReply:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("hello", data, field_names(cls), strict=False)
        check.need("hello", values, "version", "protocol", "pid")
        return cls(**values)


@dataclass(frozen=True)
class CancelRequest(_Plain):
    """job: the id of the request to cancel."""

    job: str

    def __post_init__(self) -> None:
        request_id("job", self.job)

    @classmethod
    def from_wire(cls, data: object) -> CancelRequest:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("cancel", data, field_names(cls), strict=True)
        check.need("cancel", values, "job")
        return cls(**values)


@dataclass(frozen=True)
class Accepted(_Plain):
    """The job is in the queue with `position` jobs before it; sent again when that changes."""

    job: str
    position: int

    def __post_init__(self) -> None:
        request_id("job", self.job)
        check.integer("position", self.position, 0, 1_000_000)

    @classmethod
    def from_wire(cls, data: object) -> Accepted:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("accepted", data, field_names(cls), strict=False)
        check.need("accepted", values, "job", "position")
        return cls(**values)


@dataclass(frozen=True)
class Progress(_Plain):
    """stage: one of schema.STAGES. face: the one worked on, counted from 1, of `faces` (both 0
    before faces are known). fraction: of the whole job, 0 to 1. text: for a person, may be ""."""

    job: str
    stage: str
    face: int = 0
    faces: int = 0
    fraction: float = 0.0
    text: str = ""

    def __post_init__(self) -> None:
        request_id("job", self.job)
        check.name_text("stage", self.stage, 100)
        check.integer("face", self.face, 0, MAX_FACES)
        check.integer("faces", self.faces, 0, MAX_FACES)
        object.__setattr__(self, "fraction", check.number("fraction", self.fraction, 0, 1))
        check.text("text", self.text)

    @classmethod
    def from_wire(cls, data: object) -> Progress:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("progress", data, field_names(cls), strict=False)
        check.need("progress", values, "job", "stage")
        return cls(**values)


@dataclass(frozen=True)
class ErrorReply(_Plain):
    """What went wrong, why, and what to do. job: the job it ends, None when it ends none."""

    code: str
    message: str
    hint: str = ""
    job: str | None = None

    def __post_init__(self) -> None:
        check.name_text("code", self.code, 100)
        check.text("message", self.message)
        check.text("hint", self.hint)
        check.optional("job", self.job, request_id)

    def to_error(self) -> FaceRestoreError:
        """As an exception with the same code, message and hint."""
        return FaceRestoreError(self.message, hint=self.hint, code=self.code)

    @classmethod
    def from_wire(cls, data: object) -> ErrorReply:
        """Checked from a map; raises SchemaError."""
        values = check.fields_of("error", data, field_names(cls), strict=False)
        check.need("error", values, "code", "message")
        return cls(**values)

    @classmethod
    def of(cls, error: BaseException, job: str | None = None) -> ErrorReply:
        """From any exception that carries code, message and hint; texts are cut to fit."""
        return cls(
            code=_clean(getattr(error, "code", "internal"))[:100] or "internal",
            message=_clean(getattr(error, "message", error)),
            hint=_clean(getattr(error, "hint", "")),
            job=job,
        )


def _clean(value: object) -> str:
    text = str(value).replace("\0", "?")[: check.MAX_TEXT]
    return text.encode("utf-8", "replace").decode("utf-8")
