"""One schema for everything plug-in, command line and worker say to each other.

See PROTOCOL.md. Each class has `to_wire()` (a map of plain values) and `from_wire(map)`, which
checks every field and raises SchemaError (code "bad-request") naming the one that is wrong.
"""

from __future__ import annotations

from face_restore_shared.errors import SchemaError
from face_restore_shared.messages import (
    Accepted,
    CancelRequest,
    ErrorReply,
    Hello,
    HelloReply,
    Progress,
)
from face_restore_shared.options import (
    DTYPE_SIZES,
    MASKS,
    MAX_FACES,
    MAX_PIXELS,
    MAX_SIDE,
    PATCH_DTYPES,
    PRECISIONS,
    TEMPLATES,
    DetectOptions,
    FaceTarget,
    ImageSpec,
    RestoreOptions,
)
from face_restore_shared.replies import (
    DetectResult,
    DeviceInfo,
    FaceReport,
    ModelInfo,
    ModelsReply,
    PatchSpec,
    RestoreResult,
    StatusReply,
)
from face_restore_shared.requests import DetectRequest, RestoreRequest

PROTOCOL_VERSION = 1
STAGES = (
    "queued",
    "loading-model",
    "detecting",
    "aligning",
    "restoring",
    "pasting",
    "sending",
)
REQUEST_TYPES = (
    "hello",
    "status",
    "models",
    "detect",
    "restore",
    "cancel",
    "unload",
    "shutdown",
)
REPLY_TYPES = (
    "hello",
    "status",
    "models",
    "accepted",
    "progress",
    "result",
    "ok",
    "error",
    "pulse",
)

__all__ = [
    "DTYPE_SIZES",
    "MASKS",
    "MAX_FACES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "PATCH_DTYPES",
    "PRECISIONS",
    "PROTOCOL_VERSION",
    "REPLY_TYPES",
    "REQUEST_TYPES",
    "STAGES",
    "TEMPLATES",
    "Accepted",
    "CancelRequest",
    "DetectOptions",
    "DetectRequest",
    "DetectResult",
    "DeviceInfo",
    "ErrorReply",
    "FaceReport",
    "FaceTarget",
    "Hello",
    "HelloReply",
    "ImageSpec",
    "ModelInfo",
    "ModelsReply",
    "PatchSpec",
    "Progress",
    "RestoreOptions",
    "RestoreRequest",
    "RestoreResult",
    "SchemaError",
    "StatusReply",
]
