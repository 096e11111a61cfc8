"""The plug-in's translations: which texts there are, and from .po to .mo, without other tools.

python plugin_gimp/translations.py           compile every catalogue
python plugin_gimp/translations.py --check   say what is missing or out of date; status 1 then
"""

from __future__ import annotations

import ast
import re
import struct
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "face_restore"
DOMAIN = "face-restore"
_QUOTED = re.compile(r'^(msgid|msgstr)?\s*"(.*)"$')


def source_texts() -> dict[str, str]:
    """Every text given to `_()` and the file it is in, in order."""
    found: dict[str, str] = {}
    for file in sorted((FOLDER / "restore_faces").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id != "_":
                continue
            text = node.args[0]
            if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
                raise ValueError(f"{file.name}:{node.lineno}: _() takes a constant text")
            found.setdefault(text.value, file.name)
    return found


def read_po(file: Path) -> dict[str, str]:
    """Texts and translations; the entry of the empty text is the header."""
    entries: dict[str, str] = {}
    parts = {"msgid": "", "msgstr": ""}
    field = ""
    for number, line in enumerate([*file.read_text(encoding="utf-8").splitlines(), ""], 1):
        if not line.strip():
            if field:
                entries[parts["msgid"]] = parts["msgstr"]
            parts, field = {"msgid": "", "msgstr": ""}, ""
            continue
        if line.startswith("#"):
            continue
        match = _QUOTED.match(line)
        if match is None:
            raise ValueError(f"{file}:{number}: not understood: {line}")
        field = match[1] or field
        parts[field] += ast.literal_eval(f'"{match[2]}"')
    return entries


def compiled(entries: dict[str, str]) -> bytes:
    """The bytes of a .mo file (GNU gettext's manual, "The Format of GNU MO Files")."""
    items = sorted((k.encode(), v.encode()) for k, v in entries.items() if v)
    count = len(items)
    start = 28 + 16 * count
    tables: list[bytes] = []
    texts = b""
    for column in (0, 1):
        table = b""
        for item in items:
            table += struct.pack("<II", len(item[column]), start + len(texts))
            texts += item[column] + b"\0"
        tables.append(table)
    head = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    return head + b"".join(tables) + texts


def catalogues() -> list[tuple[Path, Path]]:
    """Each language's .po and .mo file."""
    folder = FOLDER / "locale"
    sources = sorted(folder.glob(f"*/LC_MESSAGES/{DOMAIN}.po"))
    return [(source, source.with_suffix(".mo")) for source in sources]


def problems() -> list[str]:
    """What is missing, superfluous, wrong or out of date."""
    found: list[str] = []
    texts = source_texts()
    for source, target in catalogues():
        entries = read_po(source)
        language = source.parents[1].name
        found += [f"{language}: missing: {text}" for text in texts if not entries.get(text)]
        found += [f"{language}: not used: {text}" for text in entries if text not in texts and text]
        for text, translation in entries.items():
            fields = [sorted(re.findall(r"\{\w+\}", part)) for part in (text, translation)]
            if text and translation and fields[0] != fields[1]:
                found.append(f"{language}: other fields than in: {text}")
        if not target.exists() or target.read_bytes() != compiled(entries):
            found.append(f"{language}: {target.name} is out of date")
    return found


def main() -> int:
    if "--check" not in sys.argv:
        for source, target in catalogues():
            target.write_bytes(compiled(read_po(source)))
    found = problems()
    print("\n".join(found) or "all texts are translated")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
