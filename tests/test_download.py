"""``fedsim download`` against a server on 127.0.0.1."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedsim.data.downloads import DOWNLOADS, Download
from fedsim.data.fetch import fetch, unpack
from fedsim.data.published import DataFile
from fedsim.errors import InputError

Shell = Callable[..., int]
CONTENT = bytes(range(256)) * 4000


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Site(ThreadingHTTPServer):
    """Serves ``files``; may break off at byte ``cut``, or know no ranges. ``log`` keeps (path, Range, bytes sent)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.ranges = True
        self.log: list[tuple[str, str | None, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        name, asked = self.path.lstrip("/"), self.headers.get("Range")
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(content) > 0:
            self.send_error(416)
            return
        sent = content[start : self.server.cut]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(sent)
        self.server.log.append((name, asked, len(sent)))

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[Site]:
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def quiet(done: int, total: int | None) -> None:
    assert total is None or done <= total


def test_a_file_is_fetched_and_checked(site: Site, tmp_path: Path) -> None:
    site.files["f"] = CONTENT
    seen: list[tuple[int, int | None]] = []
    fetch(f"{site.url}/f", tmp_path / "f", md5(CONTENT), lambda done, total: seen.append((done, total)))
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_an_interrupted_download_is_continued(site: Site, tmp_path: Path) -> None:
    site.files["f"], site.cut = CONTENT, 300_000
    with pytest.raises(InputError, match=f"closed after 300000 of {len(CONTENT)} bytes; run again to continue"):
        fetch(f"{site.url}/f", tmp_path / "f", md5(CONTENT), quiet)
    assert not (tmp_path / "f").exists()
    site.cut = None
    fetch(f"{site.url}/f", tmp_path / "f", md5(CONTENT), quiet)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert site.log[-1] == ("f", "bytes=300000-", len(CONTENT) - 300_000)


def test_a_server_without_ranges_starts_afresh(site: Site, tmp_path: Path) -> None:
    site.files["f"], site.ranges = CONTENT, False
    (tmp_path / "f.part").write_bytes(CONTENT[:1000])
    fetch(f"{site.url}/f", tmp_path / "f", md5(CONTENT), quiet)
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("piece", [b"of another file", CONTENT + b"too long", b"x" * len(CONTENT)])
def test_a_piece_of_another_file_is_dropped(site: Site, tmp_path: Path, piece: bytes) -> None:
    site.files["f"] = CONTENT
    (tmp_path / "f.part").write_bytes(piece)
    fetch(f"{site.url}/f", tmp_path / "f", md5(CONTENT), quiet)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_whole_piece_needs_only_its_name(site: Site, tmp_path: Path) -> None:
    site.files["f"] = CONTENT
    (tmp_path / "f.part").write_bytes(CONTENT)
    fetch(f"{site.url}/f", tmp_path / "f", md5(CONTENT), quiet)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert site.log == []


def test_a_wrong_digest_leaves_nothing_behind(site: Site, tmp_path: Path) -> None:
    site.files["f"] = b"something else"
    with pytest.raises(InputError, match=f"expected md5 {md5(CONTENT)}, got {md5(b'something else')} "):
        fetch(f"{site.url}/f", tmp_path / "f", md5(CONTENT), quiet)
    assert list(tmp_path.iterdir()) == []


MEMBERS = {"batch/one": b"1" * 1000, "batch/two": b"2" * 2000}
FILES = [DataFile(f"set/{name}", {"": md5(content)}) for name, content in MEMBERS.items()]


def tar_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("batch/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return out.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return out.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("make", "name"), [(tar_of, "a.tar.gz"), (zip_of, "a.zip")])
def test_only_expected_members_are_unpacked_to_their_places(tmp_path: Path, make: object, name: str) -> None:
    inside = {"../../escape": b"x", "/absolute": b"y", "other/readme": b"z", **MEMBERS}
    archive = tmp_path / name
    archive.write_bytes(make(inside))  # type: ignore[operator]
    root = tmp_path / "deep/root"
    unpack(archive, root, FILES)
    assert tree(root) == {f"set/{path}": content for path, content in MEMBERS.items()}
    assert {path.name for path in tmp_path.iterdir()} == {name, "deep"}
    archive.write_bytes(make({"../../one": MEMBERS["batch/one"], "../../two": b"bad"}))  # type: ignore[operator]
    with pytest.raises(InputError, match=f"two should have md5 {md5(MEMBERS['batch/two'])}"):
        unpack(archive, root, FILES)
    archive.write_bytes(make({"batch/two": MEMBERS["batch/two"]}))  # type: ignore[operator]
    with pytest.raises(InputError, match=rf"{name}: holds no one; delete it"):
        unpack(archive, root, FILES)
    whole = make(inside)  # type: ignore[operator]
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(archive, root, FILES)


def test_the_command_downloads_unpacks_and_then_has_nothing_to_do(
    console: Shell, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tar_of(MEMBERS)
    single = DataFile("set/f", {".gz": md5(CONTENT)})
    toy = (
        Download("http://elsewhere/f.gz", "set/f.gz", md5(CONTENT), (single,)),
        Download("http://elsewhere/a.tar.gz", "set/a.tar.gz", md5(archive), tuple(FILES)),
    )
    monkeypatch.setitem(DOWNLOADS, "toy", toy)
    site.files = {"f.gz": CONTENT, "a.tar.gz": archive}
    command = ["download", "toy", "--root", str(tmp_path), "--mirror", site.url + "/"]
    assert console(*command) == 0
    expected = {"set/f.gz": CONTENT, **{f"set/{path}": content for path, content in MEMBERS.items()}}
    assert tree(tmp_path) == expected
    assert "f.gz downloaded" in capsys.readouterr().out
    requests = len(site.log)
    (tmp_path / "set/f.gz").unlink()
    (tmp_path / "set/f").write_bytes(b"a plain form, without a digest of its own")
    assert console(*command) == 0
    assert len(site.log) == requests
    assert capsys.readouterr().out.count("already there") == 2
    (tmp_path / "set/batch/one").write_bytes(b"damaged")
    assert console(*command) == 2
    assert "one: damaged" in capsys.readouterr().err


def test_help_lists_the_names(console: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert console("download", "--help") == 0
    said = capsys.readouterr().out
    for name in ("mnist", "fashion_mnist", "cifar10", "cifar100", "a9a", "gas_sensor_drift", "tiny_shakespeare"):
        assert name in said


@pytest.mark.parametrize(
    ("names", "got"), [(["imagenet"], "got imagenet"), (["mnists"], "did you mean mnist?"), ([], "got nothing")]
)
def test_an_unknown_name_lists_the_known_ones(
    console: Shell, capsys: pytest.CaptureFixture[str], names: list[str], got: str
) -> None:
    assert console("download", *names) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "NAME must be one of mnist, fashion_mnist," in line
    assert got in line


def test_without_a_network_one_line_says_which_files_go_where(
    console: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console("download", "mnist", "--root", str(tmp_path), "--mirror", "http://127.0.0.1:1") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    for part in ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", str(tmp_path / "mnist"), "--mirror"):
        assert part in line


def test_the_wrong_file_at_the_real_name_is_refused(
    console: Shell, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.files["input.txt"] = b"To be"
    assert console("download", "tiny_shakespeare", "--root", str(tmp_path), "--mirror", site.url) == 2
    expected = f"expected md5 6fb458f1232090904fb40fe944165e91, got {md5(b'To be')} (5 bytes)"
    assert expected in capsys.readouterr().err
    assert tree(tmp_path) == {}


def test_a_file_that_the_server_lacks_is_an_error(
    console: Shell, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert console("download", "cifar100", "--root", str(tmp_path), "--mirror", site.url) == 2
    assert "Not Found" in capsys.readouterr().err
    assert tree(tmp_path) == {}


def test_every_download_leads_to_files_that_a_reader_looks_for() -> None:
    for name, downloads in DOWNLOADS.items():
        for download in downloads:
            assert download.url.startswith(("https://", "http://"))
            assert download.gives
            assert download.is_archive or download.path.startswith(download.gives[0].path)
            assert download.md5 is not None or name == "gas_sensor_drift"
