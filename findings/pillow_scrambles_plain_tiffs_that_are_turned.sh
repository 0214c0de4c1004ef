#!/usr/bin/env bash
# Pillow 12.3.0: a grayscale TIFF without compression, whose orientation says that the camera
# was held upright (6), comes out scrambled if it is opened by its path: Pillow maps the file
# into memory with height and width exchanged. Opened as a file object, or compressed, the
# same picture comes out right.
#
# Fails if a newer version of Pillow reads it by its path as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==12.3.0
cat >"$folder/show.py" <<'PYTHON'
import sys
from pathlib import Path

from PIL import ExifTags, Image

path = Path(sys.argv[1])
stored = Image.frombytes("L", (4, 2), bytes(range(8)))
exif = Image.Exif()
exif[ExifTags.Base.Orientation] = 6
stored.save(path, exif=exif)
upright = stored.transpose(Image.Transpose.ROTATE_270)
with Image.open(path) as by_path, path.open("rb") as file, Image.open(file) as by_file:
    for name, image in (("expected", upright), ("by file", by_file), ("by path", by_path)):
        image.load()
        print(name, image.size, list(image.tobytes()))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/photo.tiff" >"$folder/seen"
cat "$folder/seen"
diff "$folder/seen" - <<'SEEN'
expected (2, 4) [4, 0, 5, 1, 6, 2, 7, 3]
by file (2, 4) [4, 0, 5, 1, 6, 2, 7, 3]
by path (4, 2) [6, 4, 2, 0, 7, 5, 3, 1]
SEEN
