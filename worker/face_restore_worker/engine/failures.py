"""What exceptions of the libraries mean to a user."""

from __future__ import annotations

from face_restore_worker.errors import DeviceError

# What numpy, torch, oneDNN, OpenCV and the C++ library say when the system gives no more memory.
_TEXTS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "insufficient memory",
)


def out_of_memory(error: BaseException) -> DeviceError | None:
    """The error to show when `error` means that there was too little memory, else None."""
    from face_restore_worker.pipeline.device import is_out_of_memory

    text = str(error).lower()
    if not is_out_of_memory(error) and not any(part in text for part in _TEXTS):
        return None
    return DeviceError(
        "There was too little free memory for this picture.",
        hint="Close other programs, scale the picture down, or restore fewer faces at a time.",
        code="out-of-memory",
    )
