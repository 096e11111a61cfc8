"""The user's GIMP profiles: one folder for each minor version, such as GIMP/3.0 and GIMP/3.2."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from face_restore_worker.gimp.surroundings import FLATPAK_ID, Surroundings

SERIES = re.compile(r"3\.\d+")
_OLD_SERIES = re.compile(r"2\.\d+")


@dataclass(frozen=True)
class Profile:
    """series: "3.0", or None where the folder's name does not tell (GIMP3_DIRECTORY).

    sandbox: "Flatpak" when only that GIMP reads it, else "".
    """

    folder: Path
    series: str | None
    sandbox: str = ""


def override(surroundings: Surroundings) -> Path | None:
    """The profile GIMP3_DIRECTORY names; relative ones lie below the home folder, as in GIMP."""
    value = surroundings.env.get("GIMP3_DIRECTORY", "")
    return surroundings.home / value if value else None


def standard_root(surroundings: Surroundings) -> Path:
    """The folder that holds the profiles of this platform's GIMP, each named by its series."""
    if surroundings.platform == "win32":
        return surroundings.folder("APPDATA", "AppData/Roaming") / "GIMP"
    if surroundings.platform == "darwin":
        return surroundings.home / "Library" / "Application Support" / "GIMP"
    return surroundings.folder("XDG_CONFIG_HOME", ".config") / "GIMP"


def find_profiles(surroundings: Surroundings) -> list[Profile]:
    """Every GIMP 3 profile that exists; only GIMP3_DIRECTORY's where that is set."""
    named = override(surroundings)
    if named is not None:
        return [Profile(named, series_of(named))] if named.is_dir() else []
    return [
        Profile(folder, folder.name, sandbox)
        for root, sandbox in _roots(surroundings)
        for folder in _subfolders(root, SERIES)
    ]


def profile_for(surroundings: Surroundings, series: str, is_flatpak: bool) -> Profile:
    """The profile a GIMP of that series uses or will make."""
    named = override(surroundings)
    if named is not None:
        return Profile(named, series_of(named) or series)
    own = flatpak_root(surroundings)
    if is_flatpak and own.is_dir():
        return Profile(own / series, series, "Flatpak")
    return Profile(standard_root(surroundings) / series, series)


def has_older(surroundings: Surroundings, series: str) -> bool:
    """Whether there is a profile whose settings GIMP would take over at its first start."""
    root = standard_root(surroundings)
    folders = [*_subfolders(root, _OLD_SERIES), *_subfolders(root, SERIES)]
    return any(_order(folder.name) < _order(series) for folder in folders)


def has_gimp2(surroundings: Surroundings) -> bool:
    """Whether GIMP 2 was used here."""
    return bool(_subfolders(standard_root(surroundings), _OLD_SERIES))


def series_of(folder: Path) -> str | None:
    """ "3.0" for a folder of that name, None for any other."""
    return folder.name if SERIES.fullmatch(folder.name) else None


def flatpak_root(surroundings: Surroundings) -> Path:
    """Where a Flatpak that is kept from the standard folder has its profiles."""
    return surroundings.home / ".var" / "app" / FLATPAK_ID / "config" / "GIMP"


def _roots(surroundings: Surroundings) -> list[tuple[Path, str]]:
    roots = [(standard_root(surroundings), "")]
    if surroundings.platform == "win32":
        # A GIMP from Microsoft's store may be given a private copy of %APPDATA%.
        packages = surroundings.folder("LOCALAPPDATA", "AppData/Local") / "Packages"
        private = packages.glob("*GIMP*/LocalCache/Roaming/GIMP")
        roots += [(folder, "Microsoft Store") for folder in sorted(private)]
    elif surroundings.platform != "darwin":
        own = flatpak_root(surroundings)
        if own.is_dir() and own.resolve() != roots[0][0].resolve():
            roots.append((own, "Flatpak"))
    return roots


def _subfolders(root: Path, name: re.Pattern[str]) -> list[Path]:
    if not root.is_dir():
        return []
    found = [f for f in root.iterdir() if name.fullmatch(f.name) and f.is_dir()]
    return sorted(found, key=lambda f: _order(f.name))


def _order(series: str) -> tuple[int, ...]:
    return tuple(int(part) for part in series.split("."))
