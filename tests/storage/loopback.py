"""A web server on the loopback interface whose answers a test scripts, one for each request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    server: LoopbackServer

    def do_GET(self) -> None:
        self.server.web.requests.append(dict(self.headers.items()))
        web = self.server.web
        answer = web.answers.pop(0) if web.answers else web.default
        answer(self)

    def log_message(self, *args: object) -> None:
        pass


class LoopbackServer(ThreadingHTTPServer):
    daemon_threads = True
    web: Web


Answer = Callable[[Handler], None]


@dataclass
class Web:
    """What the server answers and what it was asked."""

    url: str
    default: Answer
    answers: list[Answer] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)


def whole(content: bytes, *, etag: str | None = '"v1"', **headers: str) -> Answer:
    """The content, whatever range was asked for."""

    def answer(handler: Handler) -> None:
        _send(handler, 200, content, {"Content-Length": str(len(content)), "ETag": etag, **headers})

    return answer


def truncated(content: bytes, size_bytes: int, *, etag: str | None = '"v1"', **headers: str) -> Answer:
    """All headers, but the connection ends after so many bytes."""

    def answer(handler: Handler) -> None:
        _send(handler, 200, content[:size_bytes], {"Content-Length": str(len(content)), "ETag": etag, **headers})

    return answer


def ranged(content: bytes, *, etag: str | None = '"v1"', end: int | None = None, **headers: str) -> Answer:
    """The asked part if If-Range allows it, else all; `end` cuts the part short."""

    def answer(handler: Handler) -> None:
        asked = handler.headers.get("Range")
        condition = handler.headers.get("If-Range")
        last_modified = headers.get("Last-Modified")
        if asked is None or condition not in (None, etag, last_modified):
            whole(content, etag=etag, **headers)(handler)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            _send(handler, 416, b"", {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        part = content[start:end]
        fields = {
            "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
            "Content-Length": str(len(content) - start),
            "ETag": etag,
            **headers,
        }
        _send(handler, 206, part, fields)

    return answer


def status(code: int) -> Answer:
    """An error page."""
    return lambda handler: _send(handler, code, b"no", {"Content-Length": "2"})


def _send(handler: Handler, code: int, content: bytes, headers: dict[str, str | None]) -> None:
    handler.send_response(code)
    for name, value in {name.replace("_", "-"): value for name, value in headers.items()}.items():
        if value is not None:  # a header that a test switched off
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)
    handler.close_connection = True


@contextmanager
def running_web() -> Iterator[Web]:
    """Runs a server whose answers are scripted; unscripted requests get 404."""
    server = LoopbackServer(("127.0.0.1", 0), Handler)
    server.web = Web(f"http://127.0.0.1:{server.server_address[1]}/set.zip", status(404))
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield server.web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
