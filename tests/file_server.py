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
    """Serves the contents in the server's `answers`.

    A number is an error status. A pair (content, "cut") sends half of the content and
    closes the connection, and (content, "stall") keeps it open without a word.
    """

    def do_GET(self):
        answer = self.server.answers.get(self.path, 404)
        self.server.asked.append(self.path)
        if isinstance(answer, int):
            self.send_error(answer)
            return
        content, ending = answer if isinstance(answer, tuple) else (answer, "")
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if ending else content)
        self.wfile.flush()
        if ending == "stall":
            self.server.release.wait(20)

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
