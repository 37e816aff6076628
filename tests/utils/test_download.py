"""Downloads are complete or leave nothing, whatever the server does."""

from __future__ import annotations

import io
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

from mldr_kd_mm.utils import download as module
from mldr_kd_mm.utils.checkpoint import load_checkpoint
from mldr_kd_mm.utils.download import download
from mldr_kd_mm.utils.errors import ConfigError

PAGE = b'<!DOCTYPE html><title>Log in</title>'


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({'a': torch.arange(1000.0)}, buffer)
    return buffer.getvalue()


CONTENT = checkpoint()


class Handler(BaseHTTPRequestHandler):
    """Server of ``CONTENT`` with one fault for each path."""

    requests: list[str] = []

    def do_GET(self):
        self.requests.append(self.path)
        name = Path(self.path).stem
        headers, body = {'Content-Length': len(CONTENT)}, CONTENT
        if name == 'truncated':
            body = CONTENT[:-100]
        elif name == 'chunked':
            headers = {'Transfer-Encoding': 'chunked'}
            body = b'%x\r\n%s\r\n' % (len(CONTENT), CONTENT[:-100])
        elif name == 'cut':
            headers, body = {}, CONTENT[:-100]
        elif name == 'page':
            headers, body = {'Content-Length': len(PAGE), 'Content-Type': 'text/html'}, PAGE
        elif name == 'hidden_page':
            headers, body = {'Content-Length': len(PAGE)}, PAGE
        elif name == 'large':
            headers = {'Content-Length': 10**15}
        elif name == 'nothing':
            headers, body = {'Content-Length': 0}, b''
        self.protocol_version = 'HTTP/1.1' if name == 'chunked' else 'HTTP/1.0'
        self.send_response(404 if name == 'absent' else 200)
        for header in headers.items():
            self.send_header(header[0], str(header[1]))
        self.end_headers()
        if name == 'slow':
            for byte in body[:30]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        elif name == 'silent':
            time.sleep(1)
        elif name == 'endless':
            while True:
                self.wfile.write(bytes(10**6))
        else:
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def serve():
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.fixture(scope='module')
def url():
    with serve() as address:
        yield address


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Return the folder of downloaded checkpoints."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(module, 'DOWNLOAD_TIMEOUT', 0.3)
    Handler.requests.clear()
    return tmp_path / 'hub/checkpoints'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('truncated', rf'the download is incomplete: {len(CONTENT) - 100} of {len(CONTENT)} bytes'),
        ('chunked', 'the download is incomplete: '),
        ('cut', 'cannot be read as weights: '),
        ('page', 'the server sent a web page instead of the file'),
        ('hidden_page', 'it is a web page; download the file itself'),
        ('nothing', 'it is empty'),
        ('large', 'it is larger than 100000 MB'),
        ('slow', r'the server sent \d+ bytes in 0 s'),
        ('silent', 'timed out'),
        ('absent', 'HTTP Error 404'),
    ],
)
def test_what_is_no_checkpoint_is_not_kept(url, cache, name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_checkpoint(f'{url}/{name}.pth', 'load_from')
    assert str(caught.value).startswith(f"load_from='{url}/{name}.pth': ")
    assert str(caught.value).isprintable()
    assert list(cache.iterdir()) == []


def test_a_checkpoint_is_kept(url, cache):
    for _ in range(2):
        assert load_checkpoint(f'{url}/right.pth')['a'].sum() == 499500
    assert Handler.requests == ['/right.pth']
    (file,) = cache.iterdir()
    assert file.read_bytes() == CONTENT
    assert file.stat().st_mode & 0o044  # as any new file


def test_a_damaged_file_in_the_cache_is_named(url, cache):
    load_checkpoint(f'{url}/right.pth')
    (file,) = cache.iterdir()
    file.write_bytes(CONTENT[:-100])
    with pytest.raises(ConfigError, match=f'; delete {file} to download it again$'):
        load_checkpoint(f'{url}/right.pth')


@pytest.mark.parametrize('name', ['right', 'endless'])
def test_stops_at_the_limit(url, cache, tmp_path, name):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(ValueError, match='it is larger than 0 MB'):
        download(f'{url}/{name}.pth', path, len(CONTENT) - 1)
    assert path.read_text() == 'old'
    download(f'{url}/right.pth', path, len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert [each.name for each in tmp_path.iterdir()] == ['file']
