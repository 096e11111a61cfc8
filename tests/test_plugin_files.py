"""The plug-in's folder as it is installed, and its translations."""

from __future__ import annotations

import argparse
import gettext
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import plugin_path  # noqa: F401
import translations
from face_restore_worker.cli.main import build_parser
from face_restore_worker.gimp.layout import install_plugin


def test_every_text_is_translated_and_compiled() -> None:
    assert len(translations.source_texts()) > 80
    assert translations.catalogues()
    assert translations.problems() == []


def test_the_compiled_catalogue_is_read_by_gettext() -> None:
    german = gettext.translation("face-restore", translations.FOLDER / "locale", ["de"])
    assert german.gettext("Looking for faces") == "Gesichter werden gesucht"


def test_the_commands_that_messages_name_exist() -> None:
    """In each language: a command, and its action where it has some."""
    texts = list(translations.source_texts())
    for source, _target in translations.catalogues():
        texts += translations.read_po(source).values()
    named = [words for text in texts for words in re.findall(r"face-restore ([a-z].*)", text)]
    assert len(named) > 10
    for words in named:
        parser = build_parser()
        for word in re.findall(r"[\w-]+", words):
            actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
            if not actions:
                break
            assert word in actions[0].choices, words
            parser = actions[0].choices[word]
        assert not parser._subparsers, words


# The letters of the buttons that GIMP puts into the dialog: Load, Save, Reset, Cancel, Help.
GIMPS_OWN = {"en": "lsrch", "de": "gszch"}


def test_each_mnemonic_of_the_dialog_is_given_once() -> None:
    labels = [text for text, file in translations.source_texts().items()
              if re.search("_[a-z]", text, re.I) and file in ("procedures.py", "dialog.py")
              and not text.endswith("…")]  # fmt: skip
    assert len(labels) > 10
    languages = {"en": dict(zip(labels, labels, strict=True))}
    for source, _target in translations.catalogues():
        languages[source.parents[1].name] = translations.read_po(source)
    assert languages.keys() == GIMPS_OWN.keys()
    for language, texts in languages.items():
        letters = [re.findall(r"_(\w)", texts[label])[0].lower() for label in labels]
        letters += GIMPS_OWN[language]
        assert sorted(set(letters)) == sorted(letters), language


def test_a_missing_translation_is_found(tmp_path: Path) -> None:
    po = tmp_path / "x.po"
    po.write_text('msgid "a {b}"\nmsgstr "c {d}"\n\nmsgid "two"\nmsgstr ""\n"lines\\n"\n')
    assert translations.read_po(po) == {"a {b}": "c {d}", "two": "lines\n"}


def test_installing_is_complete_and_idempotent(tmp_path: Path) -> None:
    folder = install_plugin(tmp_path / "plug-ins", ["worker"])
    (folder / "left-over.py").write_text("")
    again = install_plugin(tmp_path / "plug-ins", ["worker", "run"], tmp_path / "state")
    assert again == folder and sorted(p.name for p in folder.parent.iterdir()) == ["face_restore"]
    assert not (folder / "left-over.py").exists()
    assert os.access(folder / "face_restore.py", os.X_OK)
    assert json.loads((folder / "face_restore_paths.json").read_text()) == {
        "worker_command": ["worker", "run"],
        "state_dir": str(tmp_path / "state"),
    }
    assert (folder / "locale" / "de" / "LC_MESSAGES" / "face-restore.mo").exists()
    assert not list(folder.rglob("*.so")) and not list(folder.rglob("*.po"))


def test_the_installed_folder_needs_nothing_else(tmp_path: Path) -> None:
    """As in GIMP's Python: no site-packages, so msgpack is the vendored one."""
    folder = install_plugin(tmp_path / "plug-ins", ["worker"])
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from restore_faces import bundled; bundled.prepare();"
        "import msgpack, restore_faces.status, restore_faces.job as job;"
        "from face_restore_shared import wire;"
        "frame = wire.encode_header('hello', '1', {'client': 'x'});"
        "print(msgpack.__file__, wire.decode_header(frame).body, 'numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert str(folder / "vendor" / "msgpack") in done.stdout
    assert done.stdout.strip().endswith("{'client': 'x'} False")
