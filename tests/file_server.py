"""A web server on this machine, zip files, and lists of hashes for tests of downloads."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FILES = {"train/pizza/1.txt": b"one", "test/pizza/2.txt": b"two"}
NOBODY = "http://127.0.0.1:9"  # an address where no server listens


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def checksums_of(files: dict[str, bytes]) -> str:
    lines = [f"{hashlib.sha256(c).hexdigest()}  {name}\n" for name, c in files.items()]
    return "".join(lines)


class Handler(BaseHTTPRequestHandler):
    """Gives the server's `answers`, by path; see `give`."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.give(self.server.answers.get(self.path, 404))

    def give(self, answer):
        """Send a file of this content, an error of this status, or call a function with `self`.

        A pair (content, "cut") sends half of the content and closes the connection, and
        (content, "stall") keeps it open without a word. (content, 1000) sends all of the
        content, and says that it has 1,000 bytes.
        """
        if callable(answer):
            answer(self)
        elif isinstance(answer, int):
            self.send_error(answer)
        else:
            content, fault = answer if isinstance(answer, tuple) else (answer, len(answer))
            breaks = fault in ("cut", "stall")
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) if breaks else fault))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if breaks else content)
            self.wfile.flush()
            if fault == "stall":
                self.server.release.wait(60)

    def log_message(self, *_):
        pass


@contextmanager
def file_server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.asked, server.release = {}, [], threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
