"""Into which profiles the plug-in goes, putting it there, and taking it away without a trace."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from face_restore_worker.gimp import check, profiles, selftest
from face_restore_worker.gimp.layout import NAME, install_plugin
from face_restore_worker.gimp.profiles import Profile
from face_restore_worker.gimp.programs import Program, ask_version, find_programs, has_snap
from face_restore_worker.gimp.surroundings import GimpError, Surroundings

SNAP = (
    "GIMP's Snap cannot take the plug-in: it keeps a private profile and shuts other programs "
    "out. Use GIMP from the distribution, from Flathub or as AppImage beside or instead of it."
)
_NEEDS_3 = "The plug-in needs GIMP 3; GIMP 2 cannot run it. GIMP 3 is on gimp.org."
_SETTINGS = ("plug-in-face-restore.*", "plug-in-face-restore-status.*")


@dataclass(frozen=True)
class Target:
    """A profile, and the programs that use it.

    is_named: given by the user, so GIMP is told to use it for the self-test.
    """

    profile: Profile
    programs: tuple[Program, ...] = ()
    is_named: bool = False

    @property
    def folder(self) -> Path:
        return self.profile.folder


@dataclass
class Plan:
    """targets in a stable order; notes: what the user should know, each a sentence or two."""

    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan(
    surroundings: Surroundings,
    *,
    folders: Sequence[Path] = (),
    command: Sequence[str] = (),
) -> Plan:
    """Every profile the plug-in belongs into.

    folders: only these. command: only this GIMP. Neither: every profile that exists and that of
    every GIMP that is installed. Raises GimpError when there is none.
    """
    given = [_given(surroundings, command)] if command else None
    if folders:
        programs = tuple(given if given is not None else ())
        return Plan([Target(Profile(f, profiles.series_of(f)), programs, True) for f in folders])
    found = given if given is not None else find_programs(surroundings)
    result = Plan()
    usable = [program for program in found if program.version.startswith("3.")]
    if given is not None:
        result.targets = _targets(surroundings, usable, [])
        return result
    result.targets = _targets(surroundings, usable, profiles.find_profiles(surroundings))
    if has_snap(surroundings):
        result.notes.append(SNAP)
    if not result.targets:
        raise _nothing_found(surroundings, found, result.notes)
    return result


def plan_removal(surroundings: Surroundings) -> Plan:
    """Every profile that exists: no GIMP needs to be there any more."""
    return Plan([Target(profile) for profile in profiles.find_profiles(surroundings)])


def _given(surroundings: Surroundings, command: Sequence[str]) -> Program:
    version = ask_version(command, surroundings.env)
    if version is None:
        raise GimpError(
            f"`{' '.join(command)} --version` tells no version of GIMP.",
            hint="--gimp takes the command that starts GIMP, best its program gimp-console.",
            code="gimp-start",
        )
    if not version.startswith("3."):
        raise GimpError(f"This is GIMP {version}.", hint=_NEEDS_3, code="gimp-old")
    return Program(tuple(command), version)


def _targets(
    surroundings: Surroundings, programs: Sequence[Program], existing: Sequence[Profile]
) -> list[Target]:
    folders = {profile.folder: profile for profile in existing}
    users: dict[Path, list[Program]] = {folder: [] for folder in folders}
    for program in programs:
        wanted = profiles.profile_for(surroundings, program.series, program.kind == "Flatpak")
        folders.setdefault(wanted.folder, wanted)
        users.setdefault(wanted.folder, []).append(program)
    return [Target(profile, tuple(users[folder])) for folder, profile in folders.items()]


def _nothing_found(
    surroundings: Surroundings, found: Sequence[Program], notes: Sequence[str]
) -> GimpError:
    if notes:
        return GimpError("GIMP is here only as a Snap.", hint=" ".join(notes), code="gimp-snap")
    if found or profiles.has_gimp2(surroundings):
        version = found[0].version if found else "2"
        return GimpError(f"Only GIMP {version} was found.", hint=_NEEDS_3, code="gimp-old")
    return GimpError(
        "No GIMP 3 and no profile of one was found.",
        hint="Install GIMP 3, or start it once if it is installed. Elsewhere? Say where: "
        "--gimp COMMAND or --profile DIR.",
        code="gimp-missing",
    )


# --- one profile -----------------------------------------------------------------------------


def install(surroundings: Surroundings, target: Target) -> Path:
    """Put the plug-in into a profile, in place of an older one; returns its folder.

    Raises GimpError when the folder holds something else or cannot be written.
    """
    folder = check.plugin_folder(target.folder)
    try:
        _make_profile(surroundings, target)
        _clear_way(folder)
        made = install_plugin(folder.parent, check.worker_command(), check.state_dir())
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return made


def uninstall(profile: Path) -> list[Path]:
    """Take the plug-in and its settings out of a profile; returns what was removed.

    Raises GimpError when the folder holds something else or cannot be changed.
    """
    folder = check.plugin_folder(profile)
    _refuse_foreign(folder)
    gone = []
    try:
        for path in (folder, *_leftovers(folder), *_settings(profile)):
            if path.is_symlink() or path.is_file():
                path.unlink()
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                continue
            gone.append(path)
        if gone:
            _remove_empty(profile)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return gone


def _make_profile(surroundings: Surroundings, target: Target) -> None:
    if target.folder.is_dir():
        return
    # A Flatpak's GIMP would run in a sandbox whose folders may differ from what we see.
    for program in target.programs if not target.is_named else ():
        if selftest.make_profile(program, target.folder):
            return
    series = target.profile.series
    if target.programs and series and profiles.has_older(surroundings, series):
        raise GimpError(
            f"{target.programs[0].name} was never started, and does not make its profile "
            f"{target.folder} when started without a window.",
            hint="Start it once, so that it takes over the settings of the older GIMP; then run "
            "this again.",
            code="gimp-profile",
        )
    target.folder.mkdir(parents=True, mode=0o700)


def _clear_way(folder: Path) -> None:
    """Remove what an interrupted installation left, and a link to a checkout."""
    _refuse_foreign(folder)
    for path in _leftovers(folder):
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    if folder.is_symlink():
        folder.unlink()


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_symlink() and not check.is_ours(folder):
        raise GimpError(
            f"{folder} exists and holds something else.",
            hint="Move it away, then run this again.",
            code="gimp-foreign",
        )


def _leftovers(folder: Path) -> list[Path]:
    if not folder.parent.is_dir():
        return []
    names = (f".{NAME}.new-*", f".{NAME}.old-*")
    return sorted(path for name in names for path in folder.parent.glob(name))


def _settings(profile: Path) -> list[Path]:
    """What GIMP keeps of the dialog's last values."""
    folder = profile / "plug-in-settings"
    found = [path for name in _SETTINGS for path in folder.glob(name)]
    return sorted([*found, *profile.glob(f"{selftest.RESULT}*")])


def _remove_empty(profile: Path) -> None:
    """A profile that GIMP never filled was made by us."""
    plugins = profile / "plug-ins"
    others = [path for path in profile.iterdir() if path != plugins]
    if others or not plugins.is_dir() or any(plugins.iterdir()):
        return
    plugins.rmdir()
    profile.rmdir()


def _cannot_write(folder: Path, error: OSError) -> GimpError:
    what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return GimpError(
        f"{folder} cannot be changed ({what}).",
        hint="Close GIMP, see that you may write to this folder, and run this again.",
        code="gimp-write",
    )
