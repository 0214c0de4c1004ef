"""A server for the photos, which answers as badly as a row wants it."""

from http.server import BaseHTTPRequestHandler
from pathlib import Path

from going_modular.images import downloads, sources

ZIP, PHOTO = f"{sources.PHOTOS}.zip", sources.CUSTOM_PHOTO


def photos_are(checksums: Path, limits: dict[str, int] | None = None) -> None:
    """In a command's process: other photos than FoodVision Mini are the right ones.

    Args:
        limits: of archives, lower than those of `downloads`, so that a harmless one exceeds them.
    """
    sources.PHOTO_CHECKSUMS, sources.CUSTOM_PHOTO_SHA256 = checksums, ""
    for name, value in (limits or {}).items():
        assert hasattr(downloads, name)
        setattr(downloads, name, value)


class Mirror(BaseHTTPRequestHandler):
    """Answers as the functions in `server.answers` do it, by path; others are not there."""

    def do_GET(self):
        self.server.asked.append(self.path)
        answer = self.server.answers.get(self.path.removeprefix("/"))
        if answer is None:
            self.send_error(404)
        else:
            answer(self)

    def log_message(self, *_):
        pass


def send(answer: Mirror, content: bytes, length: int | None = None) -> None:
    """Send a file; `length` is what the server says that it has, if that is a lie."""
    answer.send_response(200)
    answer.send_header("Content-Length", str(length or len(content)))
    answer.end_headers()
    answer.wfile.write(content)


def send_error(answer: Mirror, status: int) -> None:
    answer.send_error(status)


def fail_first(answer: Mirror, status: int, content: bytes) -> None:
    """An error for the first two requests, and the file then."""
    if answer.server.asked.count(answer.path) < 3:
        answer.send_error(status)
    else:
        send(answer, content)


def redirect(answer: Mirror) -> None:
    answer.send_response(301)
    answer.send_header("Location", answer.path)
    answer.send_header("Content-Length", "0")
    answer.end_headers()


def stall(answer: Mirror, content: bytes) -> None:
    """Send half, and then not a word."""
    send(answer, content[: len(content) // 2], len(content))
    answer.server.released.wait(60)


def send_slowly(answer: Mirror, content: bytes) -> None:
    answer.server.released.wait(4)  # longer than the other process waits without a word
    send(answer, content)
