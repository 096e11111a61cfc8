"""Restoring one picture after the other: progress, failures, what is printed, how it ends."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from face_restore_shared.errors import FaceRestoreError

from face_restore_worker.cli import settings
from face_restore_worker.cli.exits import Exit, exit_for
from face_restore_worker.cli.jobs import ORA, Job, Plan, is_done
from face_restore_worker.errors import ImageError

if TYPE_CHECKING:
    import numpy as np

    from face_restore_worker.cli.backend import Backend
    from face_restore_worker.cli.choice import Choice
    from face_restore_worker.cli.progress import ProgressBar
    from face_restore_worker.cli.report import FileReport
    from face_restore_worker.pipeline.types import RestoreOutcome

# Errors that would meet every picture of the run alike, so that going on makes no sense.
_FATAL = frozenset(
    {
        "checkpoint",
        "connection-file",
        "device",
        "device-unavailable",
        "disk-full",
        "folder",
        "lock",
        "locked",
        "model",
        "not-a-checkpoint",
        "precision-unknown",
        "protocol-mismatch",
        "torchvision",
        "usage",
        "worker-not-answering",
        "worker-not-running",
        "worker-start",
        "wrong-network",
        "wrong-token",
    }
)
_FATAL_FAMILIES = ("checkpoint-", "licence-", "model-")
_NO_FACE = "No face was found"
_STAGES = {
    "queued": "waiting for the worker",
    "loading-model": "loading the model",
    "detecting": "looking for faces",
    "aligning": "aligning",
    "restoring": "restoring",
    "pasting": "pasting",
    "sending": "sending back",
}


class Run:
    """One run over all pictures of a plan."""

    def __init__(self, args: argparse.Namespace, todo: Plan) -> None:
        self.args = args
        self.plan = todo
        self.reports: list[FileReport] = []
        self.detect_options = settings.detect_options(args)
        self.restore_options = settings.restore_options(args)
        self._said: set[str] = set()

    def execute(self) -> int:
        """Do all pictures; returns the exit status."""
        from face_restore_worker.cli.backend import open_backend
        from face_restore_worker.cli.progress import ProgressBar

        many = len(self.plan.jobs) > 1
        bar = ProgressBar(
            len(self.plan.jobs) if many else 100,
            unit="picture" if many else "",
            quiet=self.args.quiet,
        )
        fatal: FaceRestoreError | None = None
        interrupted = False
        self._tidy()
        with bar:
            for note in self.plan.notes:
                self._remark(bar, note)
            try:
                with open_backend(self.args, bar.write) as backend:
                    for job in self.plan.jobs:
                        report = self._one(job, backend, bar, many)
                        self._tell(report, bar)
                        if many:
                            bar.advance()
                        if report.error is not None and is_fatal(report.error):
                            fatal = report.error
                            break
            except FaceRestoreError as error:
                fatal = error
            except KeyboardInterrupt:
                interrupted = True
        return self._end(fatal, interrupted, many)

    def _tidy(self) -> None:
        """Remove the temporary files that a killed run left where this one writes."""
        from face_restore_worker.images.parts import remove_leftovers

        folders = {job.target.parent for job in self.plan.jobs}
        if self.args.save_faces is not None:
            folders |= {Path(self.args.save_faces) / Path(j.name).parent for j in self.plan.jobs}
        for folder in folders:
            remove_leftovers(folder)

    def _end(self, fatal: FaceRestoreError | None, interrupted: bool, many: bool) -> int:
        from face_restore_worker.cli import report as out

        left = len(self.plan.jobs) - len(self.reports)
        if self.args.format == "json":
            out.print_json(self.reports, left)
        failed = [report for report in self.reports if report.error is not None]
        if many:
            out.print_summary(self.reports, left, quiet=self.args.quiet)
        elif failed and failed[0].error is not None:
            out.say_error(failed[0].error)
        if fatal is not None and all(report.error is not fatal for report in failed):
            out.say_error(fatal)
        if interrupted:
            more = " Run the same command again to go on." if self.plan.is_folder else ""
            print(
                f"face-restore: interrupted; nothing half-written is left.{more}", file=sys.stderr
            )
            return Exit.INTERRUPTED
        if fatal is not None:
            return exit_for(fatal)
        return Exit.SOME_FAILED if failed else Exit.OK

    def _one(self, job: Job, backend: Backend, bar: ProgressBar, many: bool) -> FileReport:
        """Do one picture; its error, if any, ends up in the report."""
        from face_restore_worker.cli.report import FileReport, unforeseen
        from face_restore_worker.images.names import printable

        report = FileReport(printable(job.source))
        try:
            if self.plan.is_folder and job.target.exists() and not self.args.overwrite:
                self._skip(job, report)
            else:
                self._restore(job, backend, bar, many, report)
        except FaceRestoreError as error:
            if error.code == "cancelled":
                raise KeyboardInterrupt from error
            report.status, report.error = "failed", error
        except Exception as error:
            report.status, report.error = "failed", unforeseen(error, report.name)
        self.reports.append(report)
        return report

    def _skip(self, job: Job, report: FileReport) -> None:
        from face_restore_worker.images.names import printable

        report.output = printable(job.target)
        if not is_done(job):
            raise ImageError(
                f"{report.output} exists and is older than its input.",
                hint="Add --overwrite to replace it.",
                code="exists",
            )
        report.status = "skipped"

    def _restore(
        self, job: Job, backend: Backend, bar: ProgressBar, many: bool, report: FileReport
    ) -> None:
        from face_restore_worker.cli import outputs
        from face_restore_worker.cli.choice import choose
        from face_restore_worker.cli.report import fill
        from face_restore_worker.images.names import printable
        from face_restore_worker.images.read import read_image

        args = self.args
        if many:
            bar.note(printable(job.name))
        if self.plan.is_folder:
            outputs.make_folder(job.target.parent)
        outputs.check_output(job.target, job.source, overwrite=args.overwrite)
        faces_folder = self._faces_folder(job)
        picture = read_image(job.source, max_pixels=args.max_pixels)
        report.notes += picture.notes
        selection = None
        if args.selection is not None:
            selection = outputs.read_selection(
                Path(args.selection), picture.width, picture.height, args.max_pixels
            )
        image, choice = picture.working(), None
        if args.faces.numbers:
            found = backend.detect(image, self.detect_options, selection)
            choice = choose(found, args, report.name)
        outcome = self._work(image, choice, selection, backend, bar, many, job)
        fill(report, outcome, choice)
        if not report.faces and not args.aligned:
            report.notes += settings.search_limits(args)
        report.notes += _other_size(args.expected_size, outcome)
        if faces_folder is not None and outcome.patches:
            # Before the result, whose being there says that the picture is done.
            outputs.write_faces(
                picture, outcome.patches, faces_folder, job.stem, overwrite=args.overwrite
            )
        report.notes += outputs.write_result(
            picture,
            outcome.patches,
            job.target,
            strength=args.strength,
            quality=args.quality,
            overwrite=args.overwrite,
        )
        report.output = printable(job.target)
        report.status = "restored" if outcome.patches else "no-face"

    def _faces_folder(self, job: Job) -> Path | None:
        """Where the picture's faces are saved, once it is sure that they can be; None: nowhere."""
        from face_restore_worker.cli import outputs

        if self.args.save_faces is None:
            return None
        below = Path(job.name).parent if self.plan.is_folder else Path()
        folder = Path(self.args.save_faces) / below
        # In a folder they may be those of a run that was killed before it wrote the result.
        overwrite = self.args.overwrite or self.plan.is_folder
        outputs.check_faces(folder, job.stem, overwrite=overwrite)
        return folder

    def _work(
        self,
        image: np.ndarray,
        choice: Choice | None,
        selection: np.ndarray | None,
        backend: Backend,
        bar: ProgressBar,
        many: bool,
        job: Job,
    ) -> RestoreOutcome:
        """Have the faces restored, with progress shown."""
        from face_restore_worker.images.names import printable

        def listener(stage: str, face: int, faces: int, fraction: float) -> None:
            text = _STAGES.get(stage, stage)
            if faces > 1 and stage in ("aligning", "restoring", "pasting"):
                text += f" face {face} of {faces}"
            if many:
                bar.note(f"{printable(job.name)}: {text}")
            else:
                bar.note(text)
                bar.set(min(100, round(100 * fraction)))

        options = self.restore_options
        if job.target.suffix.lower() == ORA:
            options = replace(options, strength=1.0)  # it becomes the layer's opacity
        return backend.restore(
            image,
            detect=self.detect_options,
            restore=options,
            faces=None if choice is None else list(choice.faces.values()),
            selection=selection,
            listener=listener,
        )

    def _tell(self, report: FileReport, bar: ProgressBar) -> None:
        """One line for the picture, then what is remarkable about it (once in a run)."""
        from face_restore_worker.cli.report import printable_text, sentence
        from face_restore_worker.models.store import GET_THE_REAL_ONE

        # That there is no face is said in the picture's own line.
        notes = [note for note in report.notes if not note.startswith(_NO_FACE)]
        notes += [f"face {f['number']}: {f['note']}" for f in report.faces if f.get("note")]
        if self.args.quiet:
            return
        for note in notes:
            about = "" if note == GET_THE_REAL_ONE else f"{report.name}: "
            self._remark(bar, about + printable_text(note), note)
        if self.args.format == "text":
            if bar.is_terminal and sys.stdout.isatty():
                bar.write(sentence(report))
            else:
                print(sentence(report), flush=True)

    def _remark(self, bar: ProgressBar, text: str, key: str | None = None) -> None:
        # A folder of CMYK pictures should not repeat the same remark a thousand times.
        if (key or text) not in self._said:
            self._said.add(key or text)
            bar.write(f"note: {text}")


def _other_size(expected: int | None, outcome: RestoreOutcome) -> list[str]:
    """A remark when the model works at another size than --size of a blog post's command says."""
    sizes = {patch.crop_size for patch in outcome.patches} - {expected}
    if expected is None or not sizes:
        return []
    return [f"--size {expected} has no effect: the checkpoint is of size {max(sizes)}"]


def is_fatal(error: FaceRestoreError) -> bool:
    """Whether the error would meet every other picture as well."""
    return error.code in _FATAL or error.code.startswith(_FATAL_FAMILIES)
