"""Fetching over HTTP: resumed where it broke off, verified, and nothing kept that is not what was announced."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import layouts
import pytest

from ecgformers.datasets_scripts.command_line import main
from ecgformers.datasets_scripts.fetching import FetchError, fetch
from ecgformers.datasets_scripts.ptb_xl import PtbXl


class FileServer:
    """Files over HTTP with byte ranges; those in `broken` end after ten bytes, once."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.broken: set[str] = set()
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                name, asked = self.path.lstrip("/"), self.headers.get("Range")
                server.requests.append((name, asked))
                content = server.files.get(name)
                if content is None:
                    return self.send_error(404)
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
                if asked and start >= len(content):
                    return self.send_error(416)
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                stop = len(content)
                if name in server.broken:
                    server.broken.remove(name)
                    stop = start + 10
                self.wfile.write(content[start:stop])

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def announce(self, folder: str) -> None:
        lines = [
            f"{hashlib.sha256(content).hexdigest()} {name.removeprefix(f'{folder}/')}"
            for name, content in self.files.items()
        ]
        self.files[f"{folder}/SHA256SUMS.txt"] = ("\n".join(lines) + "\n").encode()


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer(
        {f"set/1.0/{name}": name.encode() * 100 for name in ("a.csv", "records/b.dat", "records/c.dat")}
    )
    server.announce("set/1.0")
    threading.Thread(target=server.http.serve_forever, daemon=True).start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_what_is_wanted_is_fetched(server: FileServer, tmp_path: Path) -> None:
    fetch(f"{server.url}/set/1.0", tmp_path, lambda name: name != "records/c.dat")
    assert (tmp_path / "a.csv").read_bytes() == b"a.csv" * 100
    assert (tmp_path / "records" / "b.dat").read_bytes() == b"records/b.dat" * 100
    assert not (tmp_path / "records" / "c.dat").exists()


def test_what_is_there_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    fetch(f"{server.url}/set/1.0", tmp_path, lambda name: True)
    (tmp_path / "a.csv").write_bytes(b"damaged since")
    server.requests.clear()
    fetch(f"{server.url}/set/1.0", tmp_path, lambda name: True)
    assert [name for name, _ in server.requests] == ["set/1.0/SHA256SUMS.txt", "set/1.0/a.csv"]
    assert (tmp_path / "a.csv").read_bytes() == b"a.csv" * 100


def test_a_file_that_broke_off_goes_on_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    server.broken = {"set/1.0/a.csv"}
    with pytest.raises(FetchError, match=r"a\.csv.*run it again"):
        fetch(f"{server.url}/set/1.0", tmp_path, lambda name: name == "a.csv")
    assert (tmp_path / "a.csv.part").read_bytes() == b"a.csva.csv"
    assert not (tmp_path / "a.csv").exists()
    fetch(f"{server.url}/set/1.0", tmp_path, lambda name: name == "a.csv")
    assert server.requests[-1] == ("set/1.0/a.csv", "bytes=10-")
    assert (tmp_path / "a.csv").read_bytes() == b"a.csv" * 100
    assert not (tmp_path / "a.csv.part").exists()


def test_a_server_without_ranges_starts_anew(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv.part").write_bytes(b"something else")
    handler = server.http.RequestHandlerClass
    get = handler.do_GET

    def without_range(self: BaseHTTPRequestHandler) -> None:
        del self.headers["Range"]
        get(self)

    monkeypatch.setattr(handler, "do_GET", without_range)
    fetch(f"{server.url}/set/1.0", tmp_path, lambda name: name == "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == b"a.csv" * 100


def test_a_wrong_part_of_full_length_does_not_stay(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "a.csv.part").write_bytes(b"wrong" * 100)
    with pytest.raises(FetchError, match=r"(?s)a\.csv.*416.*run it again"):
        fetch(f"{server.url}/set/1.0", tmp_path, lambda name: name == "a.csv")
    fetch(f"{server.url}/set/1.0", tmp_path, lambda name: name == "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == b"a.csv" * 100


def test_another_file_than_announced_is_not_kept(server: FileServer, tmp_path: Path) -> None:
    server.files["set/1.0/a.csv"] = b"something else"
    with pytest.raises(FetchError, match=r"a\.csv is not the file that SHA256SUMS.txt announces"):
        fetch(f"{server.url}/set/1.0", tmp_path, lambda name: name == "a.csv")
    assert not list(tmp_path.glob("a.csv*"))


@pytest.mark.parametrize("line", ["0" * 64 + " ../outside", "0" * 64 + " /etc/passwd", "not a checksum"])
def test_nothing_is_written_outside_the_folder(server: FileServer, tmp_path: Path, line: str) -> None:
    server.files["set/1.0/SHA256SUMS.txt"] = line.encode()
    with pytest.raises(FetchError, match="is not a checksum and the name of a file below"):
        fetch(f"{server.url}/set/1.0", tmp_path / "inside", lambda name: True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["SHA256SUMS.txt"]


def test_a_server_that_refuses_is_named(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"missing/1.0/SHA256SUMS.txt.*404"):
        fetch(f"{server.url}/missing/1.0", tmp_path, lambda name: True)


def test_a_build_fetches_only_when_told_to(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "publisher"
    layouts.ptb_xl(source, records=4)
    (source / "records500").mkdir()
    (source / "records500" / "large.dat").write_bytes(b"of another rate")
    server.files = {
        f"ptb-xl/1.0.3/{path.relative_to(source).as_posix()}": path.read_bytes()
        for path in source.rglob("*")
        if path.is_file()
    }
    server.announce("ptb-xl/1.0.3")
    arguments = ["build", "--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--rate", "100"]
    with pytest.raises(SystemExit, match="add --download"):
        main(PtbXl, [*arguments, "--base-url", server.url])
    assert not server.requests
    main(PtbXl, [*arguments, "--base-url", server.url, "--download"])
    assert capsys.readouterr().out == "4 records (4 train), none broken\n"
    assert not (tmp_path / "data" / "records500").exists()
