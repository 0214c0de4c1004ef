"""A server for the photos: what it answers, besides what `file_server` can do."""

from pathlib import Path

from file_server import Handler

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


def fail_first(handler: Handler, status: int, content: bytes) -> None:
    """An error for the first two requests, and the file then."""
    handler.give(status if handler.server.asked.count(handler.path) < 3 else content)


def redirect(handler: Handler) -> None:
    """To the same address, again and again."""
    handler.send_response(301)
    handler.send_header("Location", handler.path)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def send_slowly(handler: Handler, content: bytes) -> None:
    """Wait for longer than another process waits without a word."""
    handler.server.release.wait(4)
    handler.give(content)
