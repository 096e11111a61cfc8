"""What happened to each picture, as sentences and as JSON."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from face_restore_shared.errors import FaceRestoreError
from face_restore_shared.version import __version__

from face_restore_worker.errors import ImageError
from face_restore_worker.images.names import printable

if TYPE_CHECKING:
    from face_restore_worker.cli.choice import Choice
    from face_restore_worker.pipeline.types import Face, RestoreOutcome

STATUSES = ("restored", "no-face", "skipped", "failed", "detected")


@dataclass
class FileReport:
    """One picture.

    name: the input, printable. output: the file written, or None.
    status: one of STATUSES. faces: as ``face_report`` gives them, from left to right.
    """

    name: str
    output: str | None = None
    status: str = "failed"
    faces: list[dict[str, Any]] = field(default_factory=list)
    model: str = ""
    model_id: str = ""
    detector: str = ""
    device: str = ""
    notes: list[str] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    error: FaceRestoreError | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values; the keys are the manual's."""
        values: dict[str, Any] = {
            "input": self.name,
            "output": self.output,
            "status": self.status,
            "faces": self.faces,
            "model": self.model,
            "model_id": self.model_id,
            "detector": self.detector,
            "device": self.device,
            "notes": self.notes,
            "timings": {name: round(value, 4) for name, value in self.timings.items()},
            "error": None,
        }
        if self.error is not None:
            values["error"] = {
                "code": self.error.code,
                "message": self.error.message,
                "hint": self.error.hint,
            }
        return values


def unforeseen(error: Exception, name: str) -> FaceRestoreError:
    """The error of one picture for what nothing closer to the cause has put into words.

    name: of the picture, printable. A defect's traceback is printed; the other pictures go on.
    """
    if _is_out_of_memory(error):
        return ImageError(
            f"{name} does not fit into memory.",
            hint="Close other programs or scale it down.",
            code="too-large",
        )
    if isinstance(error, OSError):
        where = "" if error.filename is None else f" ({printable(error.filename)})"
        return ImageError(f"{name}: {error.strerror or error}{where}.", code="system")
    traceback.print_exception(error)
    return FaceRestoreError(
        f"The program failed on {name} ({type(error).__name__}: {error}).",
        hint="This is a defect: please report it, with the traceback.",
        code="internal",
    )


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:  # nothing of what raises otherwise was at work
        return isinstance(error, MemoryError)
    from face_restore_worker.engine.failures import out_of_memory

    return out_of_memory(error) is not None


def in_order(faces: Sequence[Face]) -> list[Face]:
    """Faces from left to right by their centres, which is how they are numbered."""
    return sorted(faces, key=lambda face: face.centre)


def face_report(number: int, face: Face) -> dict[str, Any]:
    """A face as plain values, in pixels of the upright picture."""
    return {
        "number": number,
        "box": [round(float(v), 2) for v in face.box],
        "score": round(face.score, 4),
        "landmarks": [[round(float(x), 2), round(float(y), 2)] for x, y in face.landmarks],
    }


def fill(report: FileReport, outcome: RestoreOutcome, choice: Choice | None = None) -> None:
    """Take faces, names and times from an outcome; choice: the faces that were asked for."""
    restored = {patch.face.box.tobytes(): patch for patch in outcome.patches}
    faces = list(outcome.faces)
    known = {face.box.tobytes() for face in faces}
    faces += [p.face for p in outcome.patches if p.face.box.tobytes() not in known]
    numbers = count(1) if choice is None else choice.faces
    for number, face in zip(numbers, in_order(faces), strict=False):
        entry = face_report(number, face)
        patch = restored.get(face.box.tobytes())
        entry["restored"] = patch is not None
        entry["strength"] = None if patch is None else patch.strength
        entry["note"] = None if patch is None else patch.note
        report.faces.append(entry)
    report.model, report.model_id = outcome.model_name, outcome.model_id
    report.detector, report.device = outcome.detector, outcome.device
    report.notes += outcome.notes
    if choice is not None:
        report.detector = choice.detector
        report.notes += choice.notes
    report.timings = dict(outcome.timings)


def sentence(report: FileReport) -> str:
    """One line for people."""
    if report.status == "skipped":
        return f"{report.name}: done before, skipped"
    if report.status == "failed":
        return f"{report.name}: failed"
    restored = sum(1 for face in report.faces if face.get("restored"))
    if report.status == "no-face":
        found = "no face found" if not report.faces else "no face restored"
        return f"{report.name} -> {report.output}: {found}, written unchanged"
    details = ", ".join(text for text in (report.model, report.device) if text)
    faces = "1 face" if restored == 1 else f"{restored} faces"
    return f"{report.name} -> {report.output}: {faces} restored ({details})"


def say_error(error: FaceRestoreError) -> None:
    """An error on standard error: what happened, then what to do."""
    print(f"face-restore: {printable_text(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  {printable_text(error.hint)}", file=sys.stderr)


def printable_text(text: str) -> str:
    """The text without characters that the terminal could not take."""
    return "\n".join(printable(line) for line in text.splitlines())


def summary(reports: Sequence[FileReport], left: int) -> dict[str, int]:
    """How many pictures ended how, a count for each of STATUSES; "left" were not begun."""
    counts = {status.replace("-", "_"): 0 for status in STATUSES}
    for report in reports:
        counts[report.status.replace("-", "_")] += 1
    return counts | {"left": left}


def print_json(reports: Sequence[FileReport], left: int = 0) -> None:
    """Everything as one JSON document on standard output."""
    document = {
        "version": __version__,
        "files": [report.as_json() for report in reports],
        "summary": summary(reports, left),
    }
    print(json.dumps(document, indent=2, ensure_ascii=True))


def print_summary(reports: Sequence[FileReport], left: int, *, quiet: bool = False) -> None:
    """How many pictures ended how, and each failure with its reason, on standard error.

    quiet: nothing when none failed.
    """
    if quiet and all(report.error is None for report in reports):
        return
    counts = summary(reports, left)
    words = (
        ("restored", "restored"),
        ("no_face", "without a face"),
        ("skipped", "done before"),
        ("failed", "failed"),
        ("left", "not begun"),
    )
    parts = [f"{counts[key]} {word}" for key, word in words if counts[key]]
    print(f"{len(reports) + left} pictures: {', '.join(parts)}.", file=sys.stderr)
    failures = [report for report in reports if report.error is not None]
    if failures:
        print("These failed:", file=sys.stderr)
    for report in failures:
        assert report.error is not None
        text = printable_text(str(report.error))
        print("  " + (text if report.name in text else f"{report.name}: {text}"), file=sys.stderr)
