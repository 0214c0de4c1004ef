"""Downloads: complete and checked, or a clear error that leaves nothing behind."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
from file_server import FILES, NOBODY, checksums_of, zip_of

from going_modular.images import downloads, sources
from going_modular.images.checksums import differences
from going_modular.images.downloads import DownloadError, download_data, download_file


@pytest.fixture
def checksums(tmp_path):
    """A list of the hashes of `FILES`."""
    (tmp_path / "food.sha256").write_text(checksums_of(FILES))
    return tmp_path / "food.sha256"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSES", ())


def visible(folder):
    """The names in a folder, without the empty files of locks."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_download_unpacks_and_a_second_call_asks_nobody(server, data_dir, checksums):
    server.answers["/food.zip"] = zip_of(FILES)
    folder = download_data(f"{server.url}/food.zip", "food", checksums)
    assert folder == data_dir / "food"
    assert (folder / "train/pizza/1.txt").read_bytes() == b"one"
    assert download_data(f"{server.url}/food.zip", "food") == folder
    assert server.asked == ["/food.zip"]
    assert visible(data_dir) == ["food"]


def test_download_from_a_local_file(data_dir, tmp_path):
    (tmp_path / "food.zip").write_bytes(zip_of(FILES))
    folder = download_data(tmp_path / "food.zip", "food")
    assert (folder / "test/pizza/2.txt").read_bytes() == b"two"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (404, "404"),
        (500, "500"),
        ((zip_of(FILES), "cut"), "bytes arrived|connection broke off"),
        (zip_of(FILES)[:-30], "not a complete zip file"),
        (b"<html>a login page</html>", "not a complete zip file: .* it is a web page"),
        (zip_of({"../evil.txt": b"x"}), r"\.\./evil\.txt, outside its folder"),
        (zip_of({"/evil.txt": b"x"}), "/evil.txt, outside its folder"),
        (zip_of({"a/../../evil.txt": b"x"}), "outside its folder"),
        (zip_of(FILES | {"test/pizza/2.txt": b"TWO"}), "1 file is .* test/pizza/2.txt"),
        (zip_of({"train/pizza/1.txt": b"one"}), "1 file is .* test/pizza/2.txt"),
        (zip_of(FILES | {"train/soup/9.txt": b"x"}), "1 file is .* train/soup/9.txt"),
        (zip_of({}), "an empty zip file"),
        (zip_of({"train": b"x", "train/a": b"y"}), "train as a file and as a folder"),
    ],
)
def test_a_bad_download_says_why_in_one_line_and_leaves_nothing(
    server, data_dir, checksums, answer, words
):
    server.answers["/food.zip"] = answer
    with pytest.raises(DownloadError, match=words) as error:
        download_data(f"{server.url}/food.zip", "food", checksums)
    assert f"{server.url}/food.zip" in str(error.value) and "\n" not in str(error.value)
    assert not visible(data_dir)
    assert not list(data_dir.parent.rglob("evil.txt"))


def test_no_network_and_missing_files(data_dir, tmp_path):
    with pytest.raises(DownloadError, match="connection failed"):
        download_data(f"{NOBODY}/food.zip", "food")
    with pytest.raises(DownloadError, match="There is no file"):
        download_data(tmp_path / "absent.zip", "food")
    assert not visible(data_dir)


def test_a_server_that_fails_is_asked_again(server, data_dir, monkeypatch, capsys):
    monkeypatch.setattr(downloads, "PAUSES", (0, 0))
    answers = iter([503, (zip_of(FILES), "cut"), zip_of(FILES)])
    monkeypatch.setattr(server, "answers", Answers(answers))
    folder = download_data(f"{server.url}/food.zip", "food")
    assert (folder / "train/pizza/1.txt").read_bytes() == b"one"
    assert capsys.readouterr().out.count("Trying again in 0 s.") == 2
    monkeypatch.setattr(server, "answers", Answers(iter([404])))
    with pytest.raises(DownloadError, match="404"):
        download_data(f"{server.url}/food.zip", "more food")


class Answers:
    """One answer after the other, whatever is asked for."""

    def __init__(self, answers):
        self.answers = answers

    def get(self, path, default):
        return next(self.answers)


def test_a_server_that_stalls_is_given_up(server, data_dir, monkeypatch):
    monkeypatch.setattr(downloads, "SOCKET_TIMEOUT", (1, 0.2))
    server.answers["/food.zip"] = (zip_of(FILES) * 50, "stall")
    started = time.perf_counter()
    with pytest.raises(DownloadError, match="in time|connection broke off"):
        download_data(f"{server.url}/food.zip", "food")
    assert time.perf_counter() - started < 5
    assert not visible(data_dir)


SILENT_NAME_SERVER = f"""
import socket, time
from going_modular.images import downloads
downloads.ANSWER_TIMEOUT = 0.2
socket.getaddrinfo = lambda *_, **__: time.sleep(60)
started = time.perf_counter()
try:
    downloads.download_data({NOBODY + "/food.zip"!r}, "food")
except downloads.DownloadError as error:
    print(time.perf_counter() - started, error)
"""


def test_a_name_server_that_never_answers_costs_seconds(data_dir):
    """No timeout of requests covers it. Python has to exit in spite of it, too."""
    code = [sys.executable, "-c", SILENT_NAME_SERVER]
    child = subprocess.run(code, capture_output=True, text=True, check=True, timeout=50)
    seconds, error = child.stdout.split(maxsplit=1)
    assert float(seconds) < 2 and error == f"No answer in time from {NOBODY}/food.zip.\n"
    assert not visible(data_dir)


@pytest.mark.parametrize("mine", ["train/mine.txt", "train/pizza/1.txt"])
def test_a_folder_that_differs_is_replaced_and_kept(server, data_dir, checksums, capsys, mine):
    (data_dir / "food" / mine).parent.mkdir(parents=True)
    (data_dir / "food" / mine).write_text("my own")
    server.answers["/food.zip"] = zip_of(FILES)
    folder = download_data(f"{server.url}/food.zip", "food", checksums)
    assert not differences(folder, checksums)
    (kept,) = data_dir.glob(f"food.replaced-*/food/{mine}")
    assert kept.read_text() == "my own"
    assert str(kept).removesuffix(f"/{mine}") in capsys.readouterr().out.replace("\\", "/")


def test_a_folder_with_an_extra_file_is_not_the_data(server, data_dir, checksums):
    server.answers["/food.zip"] = zip_of(FILES)
    folder = download_data(f"{server.url}/food.zip", "food", checksums)
    (folder / "train/pizza/extra.txt").write_text("more")
    (folder / ".DS_Store").write_text("a file manager's own")
    assert differences(folder, checksums) == ["train/pizza/extra.txt"]
    download_data(f"{server.url}/food.zip", "food", checksums)
    assert not differences(folder, checksums) and len(server.asked) == 2


def test_a_relative_source_starts_at_the_checkout(data_dir, tmp_path, monkeypatch):
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "food.zip").write_bytes(zip_of(FILES))
    monkeypatch.setattr(downloads, "project_path", lambda path: tmp_path / path)
    assert (download_data("sources/food.zip", "food") / "train/pizza/1.txt").is_file()


def test_an_empty_folder_does_not_pass_for_the_data(server, data_dir):
    (data_dir / "food").mkdir()
    server.answers["/food.zip"] = zip_of(FILES)
    folder = download_data(f"{server.url}/food.zip", "food")
    assert (folder / "train/pizza/1.txt").is_file()


def test_one_file_is_checked_by_the_first_digits_of_its_hash(server, data_dir):
    """Published weights have these digits in their name. A damaged file is replaced."""
    server.answers["/weights.pth"] = b"numbers"
    digits = hashlib.sha256(b"numbers").hexdigest()[:8]
    path = download_file(f"{server.url}/weights.pth", "cache/weights.pth", digits)
    assert path == data_dir / "cache/weights.pth" and path.read_bytes() == b"numbers"
    assert download_file(f"{server.url}/weights.pth", path, digits) == path
    assert len(server.asked) == 1
    path.write_bytes(b"num")
    assert download_file(f"{server.url}/weights.pth", path, digits).read_bytes() == b"numbers"
    assert len(server.asked) == 2
    path.write_bytes(b"num")
    server.answers["/weights.pth"] = b"other numbers"
    with pytest.raises(DownloadError, match=r"weights\.pth is not the expected file"):
        download_file(f"{server.url}/weights.pth", path, digits)
    assert path.read_bytes() == b"num" and visible(path.parent) == [path.name]


def test_a_download_shows_its_progress_on_stdout(server, data_dir, capsys):
    server.answers["/food.zip"] = zip_of(FILES)
    download_data(f"{server.url}/food.zip", "food")
    out, err = capsys.readouterr()
    assert "food.zip" in out and not err


def test_the_list_of_hashes_names_the_published_counts():
    names = [line.split()[1] for line in sources.PHOTO_CHECKSUMS.read_text().splitlines()]
    folders = [Path(name).parent.as_posix() for name in names]
    counts = {folder: folders.count(folder) for folder in sorted(set(folders))}
    assert counts == {
        "test/pizza": 25,
        "test/steak": 19,
        "test/sushi": 31,
        "train/pizza": 78,
        "train/steak": 75,
        "train/sushi": 72,
    }
