"""The packages of this environment."""

import subprocess
import sys


def test_packages_that_do_not_fit_together(record):
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    record(f"`pip check`: {done.stdout.strip()}")
