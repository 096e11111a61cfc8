"""Downloading models: licence, mirrors, digests, pins, conversion, several processes at once."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_models
import torch
from face_restore_worker.errors import ModelError
from face_restore_worker.models.catalogue import Licence
from face_restore_worker.models.download import Job, download, part_path
from face_restore_worker.models.ledger import Ledger
from face_restore_worker.models.store import InstalledModel, ModelStore
from face_restore_worker.models.transfer import Limits, Progress
from http_server import FileServer, Route
from safetensors.torch import load_file
from tiny_models import MOBILE, OTHER, detector_state, digest, file_entry, gpen_state, pack

GPEN = pack(gpen_state())
DETECTOR = pack(detector_state())
FAST = Limits(connect_timeout=60, read_timeout=60, attempts=2, pause=0.0)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with FileServer() as running:
        yield running


@pytest.fixture
def builtin(tmp_path: Path) -> Path:
    return tiny_models.make_builtin(tmp_path / "builtin")


def make_store(
    tmp_path: Path, builtin: Path, *, gpen: list[Any] | None = None, detector: Any = None
) -> ModelStore:
    catalogue = tiny_models.make_catalogue(gpen, detector)
    return ModelStore(tmp_path / "models", catalogue=catalogue, builtin_dir=builtin)


def yes(licence: Licence) -> bool:
    return True


def job(**more: Any) -> Job:
    return Job(**({"ask": yes, "limits": FAST} | more))


def visible(store: ModelStore) -> set[str]:
    return {p.name for p in store.root.iterdir() if p.suffix != ".lock"}


BOOKS = {"licences.json", "pins.json"}
INSTALLED = {"gpen-bfr-2048.safetensors", "gpen-bfr-2048.json"}


def test_a_file_without_a_published_digest_is_checked_and_pinned(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    url = server.add("/gpen.pth", Route(GPEN))
    store = make_store(tmp_path, builtin, gpen=[file_entry(url)])
    seen: list[Progress] = []
    model = download(store, "gpen-bfr-2048", job(progress=seen.append))
    assert model.path == store.root / "gpen-bfr-2048.safetensors"
    assert store.resolve_restorer().id == "gpen-bfr-2048"
    loaded = load_file(model.path)
    wanted = gpen_state()
    assert all(bool((loaded[name] == wanted[name]).all()) for name in loaded)
    assert seen[-1].done == len(GPEN)
    record = model.record
    assert record is not None
    assert (record.source, record.origin) == ("download", url)
    assert record.source_sha256 == digest(GPEN)
    assert not record.published
    assert record.licence_accepted is not None
    pin = Ledger(store).pin("gpen-bfr-2048")
    assert pin is not None
    assert (pin.file, pin.url) == (digest(GPEN), url)
    assert visible(store) == INSTALLED | BOOKS


def test_a_published_digest_is_checked(server: FileServer, tmp_path: Path, builtin: Path) -> None:
    good = server.add("/good.pth", Route(DETECTOR))
    entry = file_entry(good, sha256=digest(DETECTOR), size=len(DETECTOR))
    store = make_store(tmp_path, builtin, detector=[entry])
    model = download(store, MOBILE, job())
    assert model.record is not None
    assert model.record.published
    assert Ledger(store).pin(MOBILE) is None
    assert store.verify(MOBILE) == []


def test_a_wrong_digest_is_refused(server: FileServer, tmp_path: Path, builtin: Path) -> None:
    """A working detector of the right size, but not the published one."""
    other = pack(detector_state(seed=1))
    url = server.add("/other.pth", Route(other))
    entry = file_entry(url, sha256=digest(DETECTOR), size=len(other))
    store = make_store(tmp_path, builtin, detector=[entry])
    with pytest.raises(ModelError, match=digest(DETECTOR)) as caught:
        download(store, MOBILE, job())
    assert caught.value.code == "download-failed"
    assert visible(store) == {"licences.json"}


def test_installed_models_are_not_fetched_again(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    store = make_store(tmp_path, builtin, gpen=[file_entry(server.add("/g", Route(GPEN)))])
    download(store, "gpen-bfr-2048", job())
    download(store, "gpen-bfr-2048.pth", job())
    assert len(server.seen) == 1


def test_mirrors_are_tried_in_order_and_each_failure_is_told(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    urls = [
        server.url + "/missing",
        server.add("/page", Route(b"<html>log in</html>", content_type="text/html")),
        server.add("/loop", Route(redirect="/loop")),
        server.add("/lfs", Route(b"version https://git-lfs.github.com/spec/v1\n")),
        server.add("/text", Route(b"this is no model " * 50)),
        server.add("/small", Route(pack(gpen_state(OTHER)))),
        server.add("/good", Route(GPEN)),
    ]
    store = make_store(tmp_path, builtin, gpen=[file_entry(url) for url in urls])
    told: list[str] = []
    model = download(store, "gpen-bfr-2048", job(notify=told.append))
    assert model.record is not None
    assert model.record.origin == urls[-1]
    text = "\n".join(told)
    order = ["404", "web page", "redirects", "LFS pointer", "neither a PyTorch", "of size 32"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    assert ".part" not in text
    assert visible(store) == INSTALLED | BOOKS


def test_when_every_mirror_fails_all_are_named(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    page = server.add("/page", Route(b"<html>log in</html>"))
    entry = file_entry(server.url + "/missing", page)
    store = make_store(tmp_path, builtin, gpen=[entry])
    with pytest.raises(ModelError, match="404") as caught:
        download(store, "gpen-bfr-2048", job())
    assert "web page" in caught.value.message
    assert "HTTPS_PROXY" in caught.value.hint
    assert "models import FILE" in caught.value.hint
    assert visible(store) == {"licences.json"}
    assert store.resolve_restorer().id == "builtin-restorer"


def test_a_cut_download_goes_on_in_the_next_run(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    url = server.add("/gpen", Route(GPEN, cuts=[20_000, 0, 0, 0]))
    store = make_store(tmp_path, builtin, gpen=[file_entry(url)])
    with pytest.raises(ModelError, match="ended early"):
        download(store, "gpen-bfr-2048", job())
    assert part_path(store, store.catalogue.get("gpen-bfr-2048"), url).stat().st_size == 20_000
    server.routes["/gpen"].cuts.clear()
    server.seen.clear()
    seen: list[Progress] = []
    download(store, "gpen-bfr-2048", job(progress=seen.append))
    assert [request.range for request in server.seen] == ["bytes=20000-"]
    assert seen[0].done >= 20_000
    assert visible(store) == INSTALLED | BOOKS


def test_a_part_damaged_between_runs_is_fetched_anew(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    url = server.add("/d", Route(DETECTOR, cuts=[20_000, 0, 0, 0]))
    entry = file_entry(url, sha256=digest(DETECTOR), size=len(DETECTOR))
    store = make_store(tmp_path, builtin, detector=[entry])
    with pytest.raises(ModelError, match="ended early"):
        download(store, MOBILE, job())
    part = part_path(store, store.catalogue.get(MOBILE), url)
    part.write_bytes(b"\0" * 20_000)
    server.routes["/d"].cuts.clear()
    download(store, MOBILE, job())
    assert store.verify(MOBILE) == []


def test_an_interrupted_download_keeps_what_came(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    big = pack(gpen_state() | {"padding": torch.zeros(500_000)})
    url = server.add("/gpen", Route(big, trickle=0.0))
    store = make_store(tmp_path, builtin, gpen=[file_entry(url)])

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(store, "gpen-bfr-2048", job(progress=interrupt))
    assert part_path(store, store.catalogue.get("gpen-bfr-2048"), url).stat().st_size > 0
    assert store.resolve_restorer().id == "builtin-restorer"
    with store.model_locked(store.catalogue.get("gpen-bfr-2048"), timeout=0.1):
        pass  # the lock is free again


# -- pins ----------------------------------------------------------------------------------------


def test_other_weights_than_first_seen_are_refused_until_the_pin_is_forgotten(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    url = server.add("/g", Route(GPEN))
    store = make_store(tmp_path, builtin, gpen=[file_entry(url)])
    download(store, "gpen-bfr-2048", job())
    store.remove("gpen-bfr-2048")
    server.routes["/g"] = Route(pack(gpen_state(seed=9)), etag='"two"')
    with pytest.raises(ModelError, match="not those first seen") as caught:
        download(store, "gpen-bfr-2048", job())
    assert "--forget-pin" in caught.value.hint
    assert visible(store) == BOOKS
    assert Ledger(store).forget_pin("gpen-bfr-2048")
    model = download(store, "gpen-bfr-2048", job())
    loaded = load_file(model.path)
    name = "generator.input.input"
    assert bool((loaded[name] == gpen_state(seed=9)[name]).all())


def test_a_mirror_with_other_weights_is_passed_over(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    first, second = server.add("/1", Route(GPEN)), server.add("/2", Route(GPEN))
    store = make_store(tmp_path, builtin, gpen=[file_entry(first), file_entry(second)])
    download(store, "gpen-bfr-2048", job())
    store.remove("gpen-bfr-2048")
    server.routes["/1"] = Route(pack(gpen_state(seed=9)))
    model = download(store, "gpen-bfr-2048", job())
    assert model.record is not None
    assert model.record.origin == second


def test_the_same_weights_packed_otherwise_fit_the_pin(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    url = server.add("/g", Route(GPEN))
    store = make_store(tmp_path, builtin, gpen=[file_entry(url)])
    download(store, "gpen-bfr-2048", job())
    store.remove("gpen-bfr-2048")
    state = dict(reversed(list(gpen_state().items())))
    again = pack({"g_ema": state}, _use_new_zipfile_serialization=False)
    assert digest(again) != digest(GPEN)
    server.routes["/g"] = Route(again)
    download(store, "gpen-bfr-2048", job())


# -- licences ------------------------------------------------------------------------------------


def test_the_licence_is_asked_for_once(server: FileServer, tmp_path: Path, builtin: Path) -> None:
    gpen = [file_entry(server.add("/g", Route(GPEN)))]
    detector = [file_entry(server.add("/d", Route(DETECTOR)))]
    store = make_store(tmp_path, builtin, gpen=gpen, detector=detector)
    asked: list[str] = []

    def ask(licence: Licence) -> bool:
        asked.append(licence.text)
        return True

    download(store, "gpen-bfr-2048", job(ask=ask))
    download(store, MOBILE, job(ask=ask))
    assert asked == ["For tests only."]


def test_a_changed_licence_is_asked_for_again(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    store = make_store(tmp_path, builtin)
    licence = store.catalogue.get("gpen-bfr-2048").licence
    ledger = Ledger(store)
    ledger.accept(licence)
    assert ledger.accepted(licence)
    assert not ledger.accepted(Licence(licence.id, licence.name, "Something else."))


def test_without_acceptance_nothing_is_requested(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    store = make_store(tmp_path, builtin, gpen=[file_entry(server.add("/g", Route(GPEN)))])
    with pytest.raises(ModelError, match="licence was not accepted") as caught:
        download(store, "gpen-bfr-2048", job(ask=lambda licence: False))
    assert caught.value.code == "licence-declined"
    assert server.seen == []
    assert visible(store) == set()


# -- disk, processes -----------------------------------------------------------------------------


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_ends_it_without_trying_the_mirrors(
    server: FileServer, tmp_path: Path, builtin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [file_entry(server.add(f"/{n}", Route(GPEN))) for n in range(3)]
    store = make_store(tmp_path, builtin, gpen=entries)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**9, 10**9, 10**6))
    with pytest.raises(ModelError, match="not enough room") as caught:
        download(store, "gpen-bfr-2048", job())
    assert caught.value.code == "disk-full"
    assert len(server.seen) == 1


def test_a_folder_that_cannot_be_made(server: FileServer, tmp_path: Path, builtin: Path) -> None:
    (tmp_path / "models").write_text("a file in the way")
    store = make_store(tmp_path, builtin, gpen=[file_entry(server.add("/g", Route(GPEN)))])
    with pytest.raises(ModelError, match="FACE_RESTORE_MODELS"):
        download(store, "gpen-bfr-2048", job())
    assert server.seen == []


def test_two_downloads_at_once_fetch_it_once(
    server: FileServer, tmp_path: Path, builtin: Path
) -> None:
    gate = threading.Event()
    url = server.add("/g", Route(GPEN, before=lambda route: gate.wait(20) and None))
    results: list[InstalledModel] = []
    told: list[str] = []

    def work() -> None:
        store = make_store(tmp_path, builtin, gpen=[file_entry(url)])

        def notify(text: str) -> None:
            told.append(text)
            if "waiting" in text:
                gate.set()  # the other one is known to wait: let the first go on

        results.append(download(store, "gpen-bfr-2048", job(notify=notify)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 2
    assert results[0].path == results[1].path
    assert len(server.seen) == 1
    assert sum("waiting" in text for text in told) == 1


def test_built_in_and_unknown_models(tmp_path: Path, builtin: Path) -> None:
    store = make_store(tmp_path, builtin)
    with pytest.raises(ModelError, match="part of the program"):
        download(store, "builtin-restorer", job())
    with pytest.raises(ModelError, match="Known are"):
        download(store, "gfpgan", job())


def test_the_records_are_plain_json(server: FileServer, tmp_path: Path, builtin: Path) -> None:
    store = make_store(tmp_path, builtin, gpen=[file_entry(server.add("/g", Route(GPEN)))])
    download(store, "gpen-bfr-2048", job())
    for name in ("gpen-bfr-2048.json", "pins.json", "licences.json"):
        assert isinstance(json.loads((store.root / name).read_text()), dict)
