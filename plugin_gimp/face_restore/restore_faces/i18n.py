"""Translated texts: English in the source, catalogues in locale/ beside the plug-in."""

from __future__ import annotations

import gettext
import locale
import os
import sys
from pathlib import Path

DOMAIN = "face-restore"
LOCALE = Path(__file__).resolve().parent.parent / "locale"


def _(text: str) -> str:
    """The text in the user's language (LANGUAGE, LC_ALL, LC_MESSAGES, LANG, as GIMP sets them)."""
    return _translation().gettext(text)


_cached: gettext.NullTranslations | None = None


def _translation() -> gettext.NullTranslations:
    global _cached
    if _cached is None:
        _cached = gettext.translation(DOMAIN, LOCALE, _languages(), fallback=True)
    return _cached


def _languages() -> list[str] | None:
    """Windows tells the language otherwise than by variables; None: take the variables."""
    if sys.platform != "win32" or any(map(os.environ.get, ("LANGUAGE", "LC_ALL", "LANG"))):
        return None
    import ctypes

    ident = ctypes.windll.kernel32.GetUserDefaultUILanguage()
    return [locale.windows_locale.get(ident, "en")]
