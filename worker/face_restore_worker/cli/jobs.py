"""From what the user typed to a list of pictures, each with the file it becomes."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from face_restore_shared.errors import FaceRestoreError

from face_restore_worker.errors import ImageError
from face_restore_worker.images.formats import BY_EXTENSION, FORMATS, PICTURE_EXTENSIONS
from face_restore_worker.images.names import printable

ORA = ".ora"


class UsageError(FaceRestoreError):
    """The command line is wrong."""

    default_code = "usage"


@dataclass(frozen=True)
class Job:
    """One picture to restore.

    name: its path below the input folder, for messages.
    stem: what the names of its saved faces begin with; no other picture of the folder has it.
    """

    source: Path
    target: Path
    name: str
    stem: str


@dataclass
class Plan:
    """All pictures of a run.

    is_folder: the output is a folder, so existing outputs are skipped instead of refused.
    notes: what the user should know before it starts.
    """

    jobs: list[Job] = field(default_factory=list)
    is_folder: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    source: Path
    relative: Path


def plan(
    inputs: Sequence[str],
    output: str,
    *,
    recursive: bool = False,
    extension: str | None = None,
    apart: Sequence[str] = (),
) -> Plan:
    """Find the pictures that ``inputs`` name and decide where each is written.

    Args:
        inputs: files, folders, and patterns with ``*``, ``?``, ``[...]`` or ``**``.
        output: a file for one picture; a folder (made when needed) for several.
        recursive: also look into the folders' sub-folders.
        extension: of the outputs in a folder, such as ".png"; None keeps each input's.
        apart: further folders that this run writes to, whose pictures are no inputs.

    Raises:
        UsageError: nothing to do, or the output does not fit the inputs.
    """
    target = Path(output)
    outputs = [target, *map(Path, apart)]
    found, notes, is_single = _collect(inputs, outputs, recursive)
    if not found:
        raise _nothing_found(inputs, recursive)
    if is_single and not _means_folder(output):
        only = found[0]
        if extension not in (None, target.suffix.lower()):
            notes.append(f"--ext {extension} has no effect: {printable(target)} names the format")
        return Plan([Job(only.source, target, str(only.relative), target.stem)], False, notes)
    if target.exists() and not target.is_dir():
        raise UsageError(
            f"{printable(target)} is a file, but {len(found)} pictures need a folder.",
            hint="Give a folder with -o.",
        )
    if not is_single and target.suffix.lower() in BY_EXTENSION and not target.exists():
        raise UsageError(
            f"{printable(target)} is the name of one picture, but there may be several.",
            hint="Give a folder with -o, for example -o restored.",
        )
    jobs, collisions = _place(found, target, extension)
    _refuse_inputs(jobs)
    return Plan(jobs, True, notes + collisions)


def sources(inputs: Sequence[str], *, recursive: bool = False) -> list[Path]:
    """The pictures that ``inputs`` name; UsageError when there are none."""
    found, _notes, _is_single = _collect(inputs, (), recursive)
    if not found:
        raise _nothing_found(inputs, recursive)
    return [item.source for item in found]


def _means_folder(output: str) -> bool:
    separators = tuple(s for s in (os.sep, os.altsep) if s)
    return output.endswith(separators) or Path(output).is_dir() or not Path(output).suffix


def _collect(
    inputs: Sequence[str], outputs: Sequence[Path], recursive: bool
) -> tuple[list[_Found], list[str], bool]:
    found: dict[Path, _Found] = {}
    notes: list[str] = []
    is_single = len(inputs) == 1
    for text in inputs:
        path = Path(text)
        if os.path.isdir(path):  # noqa: PTH112 - does not raise for names too long or closed folders
            is_single = False
            some = _in_folder(path, outputs, recursive)
            if not some and len(inputs) > 1:
                notes.append(f"the folder {printable(path)} holds no pictures")
        elif os.path.lexists(path) or not glob.has_magic(text):
            # A file that is not there is a failed picture, named at the end, not an early stop.
            some = [_Found(path, Path(path.name))]
        else:
            is_single = False
            some = _matching(text, outputs)
            if not some and len(inputs) > 1:
                notes.append(f"no picture matches {text}")
        for item in some:
            found.setdefault(Path(os.path.abspath(item.source)), item)  # noqa: PTH100 - keep links
    return list(found.values()), notes, is_single


def _in_folder(folder: Path, outputs: Sequence[Path], recursive: bool) -> list[_Found]:
    """Pictures of a folder by extension, without hidden ones and without the output folders."""
    found: list[_Found] = []
    for top, folders, names in os.walk(folder, onerror=_cannot_list):
        here = Path(top)
        folders[:] = sorted(
            name
            for name in folders
            if recursive and not name.startswith(".") and not _is_any(here / name, outputs)
        )
        for name in sorted(names):
            path = here / name
            if not name.startswith(".") and path.suffix.lower() in PICTURE_EXTENSIONS:
                found.append(_Found(path, path.relative_to(folder)))
    return found


def _cannot_list(error: OSError) -> None:
    raise ImageError(
        f"The folder {printable(str(error.filename))} cannot be read: {error.strerror}.",
        hint="Give yourself permission to read it.",
        code="no-permission",
    ) from error


def _matching(pattern: str, outputs: Sequence[Path]) -> list[_Found]:
    """Pictures that match a pattern; paths are kept from the first part with a wildcard on."""
    fixed = Path()
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    found = []
    for name in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - patterns as in a shell
        path = Path(name)
        relative = path.relative_to(fixed)
        inside = any(_is_any(fixed / folder, outputs) for folder in relative.parents[:-1])
        if path.is_file() and path.suffix.lower() in PICTURE_EXTENSIONS and not inside:
            found.append(_Found(path, relative))
    return found


def _is_any(path: Path, others: Sequence[Path]) -> bool:
    return any(_same(path, other) for other in others)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _nothing_found(inputs: Sequence[str], recursive: bool) -> UsageError:
    names = ", ".join(printable(text) for text in inputs)
    if any(os.path.isdir(text) for text in inputs):  # noqa: PTH112
        deeper = not recursive and any(_any_below(Path(text)) for text in inputs)
        return UsageError(
            f"There are no pictures in {names}.",
            hint="Its sub-folders hold some: add --recursive."
            if deeper
            else f"Looked for {', '.join(sorted(PICTURE_EXTENSIONS))}.",
            code="no-pictures",
        )
    return UsageError(f"No picture matches {names}.", hint="Check the pattern.", code="no-pictures")


def _any_below(folder: Path) -> bool:
    return folder.is_dir() and any(
        Path(name).suffix.lower() in PICTURE_EXTENSIONS
        for _top, _folders, names in os.walk(folder)
        for name in names
    )


def output_suffix(source: Path, extension: str | None) -> str:
    """The extension of the output: the one asked for, the input's own, else .png."""
    if extension is not None:
        return extension
    key = BY_EXTENSION.get(source.suffix.lower())
    return source.suffix if key is not None and FORMATS[key].saver else ".png"


def _key(path: Path) -> str:
    # Two names that some file system takes for one: differing in case or Unicode form.
    return unicodedata.normalize("NFC", os.fsdecode(path)).casefold()


def _place(
    found: Sequence[_Found], folder: Path, extension: str | None
) -> tuple[list[Job], list[str]]:
    """Targets below ``folder``; names that collide get the input's extension, then a number."""
    wanted: dict[str, list[tuple[_Found, Path]]] = defaultdict(list)
    for item in found:
        relative = item.relative.with_suffix(output_suffix(item.source, extension))
        wanted[_key(relative)].append((item, relative))
    taken = set(wanted)
    stems: set[str] = set()
    jobs, notes = [], []
    for group in wanted.values():
        kinds = {item.source.suffix.lower() for item, _ in group}
        by_kind = len(kinds) == len(group) > 1
        for index, (item, relative) in enumerate(group):
            name = relative
            if by_kind or index:
                name = _free_name(item, relative, taken, by_kind)
                notes.append(
                    f"{printable(item.source)} is written as {printable(name)}, because another "
                    "input has the same name"
                )
            stem = _free_stem(name, item.relative.parent, stems)
            jobs.append(Job(item.source, folder / name, str(item.relative), stem))
    order = {item.source: place for place, item in enumerate(found)}
    jobs.sort(key=lambda job: order[job.source])
    return jobs, notes


def _free_name(item: _Found, relative: Path, taken: set[str], by_kind: bool) -> Path:
    stem = relative.stem
    if by_kind:
        stem += "-" + (item.source.suffix.lstrip(".").lower() or "file")
    candidate = relative.with_name(stem + relative.suffix)
    number = 2
    while _key(candidate) in taken:
        candidate = relative.with_name(f"{stem}-{number}{relative.suffix}")
        number += 1
    taken.add(_key(candidate))
    return candidate


def _free_stem(name: Path, folder: Path, taken: set[str]) -> str:
    """The name without extension; with it where a picture beside it differs in that alone."""
    stem, number = name.stem, 1
    while _key(folder / stem) in taken:
        stem = "-".join([name.stem, name.suffix.lstrip("."), *([str(number)] * (number > 1))])
        number += 1
    taken.add(_key(folder / stem))
    return stem


def _refuse_inputs(jobs: Sequence[Job]) -> None:
    """No output may be any of the inputs."""
    for job in jobs:
        if _same(job.target, job.source):
            raise UsageError(
                f"The output for {printable(job.source)} would be the input itself.",
                hint="Give another folder with -o; inputs are never overwritten.",
                code="would-overwrite-input",
            )
    sources = {os.path.realpath(job.source) for job in jobs}
    for job in jobs:
        if os.path.realpath(job.target) in sources:
            raise UsageError(
                f"The output {printable(job.target)} would overwrite another input.",
                hint="Give another folder with -o; inputs are never overwritten.",
                code="would-overwrite-input",
            )


def is_done(job: Job) -> bool:
    """Whether the job's output is there and newer than its input."""
    try:
        return job.target.stat().st_mtime_ns >= job.source.stat().st_mtime_ns
    except OSError:
        return False
