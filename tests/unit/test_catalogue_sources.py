"""Where a catalogue is read from: directories and servers, honest and other ones."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tuf.api.exceptions import DownloadHTTPError

from tests.catalogues import NAME, NEW, OLD, Catalogue
from vmrun.model.errors import ImageError, Refused, SettingsError
from vmrun.trust.catalogue import CatalogueEntry, look_up
from vmrun.trust.tuf_fetch import (
    BASE,
    CacheFetcher,
    DirectoryFetcher,
    SourceDamaged,
    SourceUnreachable,
    open_source,
)


@pytest.fixture(autouse=True)
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmrun.trust.encrypted_key._N", 16)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue(tmp_path).init()
    made.add(OLD)
    return made


# --- directories ----------------------------------------------------------------------------


def as_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [as_link, as_fifo, as_directory])
@pytest.mark.parametrize("name", ["timestamp.json", "2.targets.json"])
def test_only_plain_files_are_read(
    catalogue: Catalogue, spoil: Callable[[Path], None], name: str
) -> None:
    root = catalogue.first_root
    spoil(catalogue.directory / name)
    with pytest.raises(ImageError, match=r"cannot be read: .*(symbolic link|not a regular file)"):
        catalogue.read(root=root)


def test_the_directory_itself_may_be_a_link(catalogue: Catalogue) -> None:
    link = catalogue.folder / "current"
    link.symlink_to(catalogue.directory)
    assert catalogue.read(source=str(link)).digest == OLD


@pytest.mark.parametrize("name", ["../secret", "a/b.json", ".hidden", "", "a\n.json", "x" * 300])
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceDamaged):
        DirectoryFetcher(tmp_path).download_bytes(f"{BASE}{name}", 100)


def test_the_cache_never_has_a_newer_root(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text("{}")
    (tmp_path / "snapshot.json").write_text("{}")
    fetcher = CacheFetcher(tmp_path)
    assert fetcher.download_bytes(f"{BASE}7.snapshot.json", 100) == b"{}"
    with pytest.raises(DownloadHTTPError):
        fetcher.download_bytes(f"{BASE}2.root.json", 100)


# --- servers --------------------------------------------------------------------------------

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def serving(
    directory: Path, answer: Answer | None = None, context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A server of ``directory`` on loopback, or one that always gives ``answer``."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(directory))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                if answer is None:
                    super().do_GET()
                else:
                    answer(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    scheme = "http" if context is None else "https"
    try:
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def status(code: int, **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def test_http_on_loopback(catalogue: Catalogue) -> None:
    with serving(catalogue.folder) as url:
        assert catalogue.read(source=f"{url}/catalogue").digest == OLD
        assert catalogue.read(source=f"{url}/catalogue/").source == f"{url}/catalogue/"
        catalogue.publisher().remove(NAME)
        with pytest.raises(Refused, match="does not list"):
            catalogue.read(source=f"{url}/catalogue")


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's certificate that signs itself, in ``folder``/ca.crt."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "catalogue")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    (folder / "ca.crt").write_bytes(pem)
    (folder / "server.pem").write_bytes(
        pem
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


def test_https_with_an_authority_of_its_own(catalogue: Catalogue) -> None:
    with serving(catalogue.directory, context=certificate(catalogue.folder)) as url:
        with pytest.raises(ImageError, match=r"cannot be reached .*certificate"):
            catalogue.read(source=url)
        folder = catalogue.folder / "certs.d" / url.removeprefix("https://")
        folder.mkdir(parents=True)
        (catalogue.folder / "ca.crt").rename(folder / "ca.crt")
        entry = read(catalogue, url, cert_dirs=(folder.parent,))
        assert (entry.digest, entry.unreachable) == (OLD, "")


def read(catalogue: Catalogue, url: str, cert_dirs: tuple[Path, ...] = ()) -> CatalogueEntry:
    return look_up(
        NAME,
        source=url,
        root=catalogue.first_root,
        state=catalogue.state,
        now=time.time(),
        cert_dirs=cert_dirs,
    )


@pytest.mark.parametrize("code", [404, 403])
def test_a_server_without_a_catalogue_is_an_error(catalogue: Catalogue, code: int) -> None:
    """Whatever is remembered: it was reached, and it has none."""
    catalogue.read()
    with (
        serving(catalogue.folder, status(code)) as url,
        pytest.raises(ImageError, match=f"is incomplete: timestamp.json: status {code}"),
    ):
        catalogue.read(source=url)


def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def silence(_: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(60)


def broken(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")


UNREACHABLE: dict[str, Answer] = {
    "drips": drip,
    "says nothing": silence,
    "breaks off": broken,
    "is overloaded": status(503),
    "leads in a circle": status(302, Location="/timestamp.json"),
    "leads to another scheme": status(302, Location="file:///etc/passwd"),
}


@pytest.mark.parametrize("kind", UNREACHABLE)
def test_a_server_that_gives_nothing_counts_as_not_reached(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("vmrun.trust.catalogue.open_source", partial(open_source, deadline=0.5))
    with serving(catalogue.folder, UNREACHABLE[kind]) as url:
        with pytest.raises(ImageError, match=r"cannot be reached .*no whole copy"):
            catalogue.read(source=url)
        catalogue.read()
        start = time.monotonic()
        assert catalogue.read(source=url).unreachable
        assert time.monotonic() - start < 5


def test_a_server_that_is_lost_half_way(catalogue: Catalogue) -> None:
    """Neither the old list counts any more, nor is the new one there."""
    catalogue.read()
    catalogue.add(NEW)
    timestamp = (catalogue.directory / "timestamp.json").read_bytes()

    def lost(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path == "/timestamp.json":
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(timestamp)
        else:
            status(404 if "root" in handler.path else 302, Location="/nowhere")(handler)

    with (
        serving(catalogue.folder, lost) as url,
        pytest.raises(ImageError, match=r"cannot be reached .*no whole copy"),
    ):
        catalogue.read(source=url)
    assert catalogue.read().digest == NEW


def test_a_connection_that_is_refused(catalogue: Catalogue) -> None:
    with serving(catalogue.folder) as url:
        pass
    catalogue.read()
    entry = catalogue.read(source=url)
    assert "refused" in entry.unreachable
    assert entry.digest == OLD


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    if "root" in handler.path:
        handler.send_error(404)
        return
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


def test_a_body_without_end_is_refused(catalogue: Catalogue) -> None:
    with (
        serving(catalogue.folder, endless) as url,
        pytest.raises(Refused, match="is larger than allowed"),
    ):
        catalogue.read(source=url)


def test_a_directory_that_hangs_counts_as_not_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmrun.trust.tuf_fetch._read_at", lambda *_: time.sleep(5))
    with pytest.raises(SourceUnreachable, match="did not answer"):
        DirectoryFetcher(tmp_path, 0.1).download_bytes(f"{BASE}timestamp.json", 100)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "relative/directory",
        "ftp://example.com/catalogue",
        "http://example.com/catalogue",
        "https://",
        "https:///catalogue",
        "https://user@example.com/",
        "https://@example.com/",
        "https://example.com/?a=b",
        "https://example.com/#a",
        "https://example.com:port/",
        "https://example.com:99999/",
        "https://[::1/",
        "https://example.com/\n",
    ],
)
def test_sources_that_are_none(source: str) -> None:
    with pytest.raises(SettingsError):
        open_source(source)
