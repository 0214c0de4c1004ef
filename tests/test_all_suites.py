"""What `make test-all` counts and writes, on suites of a few lines."""

import os
import subprocess
import sys

import pytest

from going_modular.publishing import all_suites
from going_modular.publishing.all_suites import Row


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    monkeypatch.setattr(all_suites, "BUILD", tmp_path)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.delenv("TEST_ENVIRONMENTS", raising=False)


def test_a_suite_counts_what_passed_failed_and_was_skipped(tmp_path, monkeypatch):
    path = tmp_path / "test_small.py"
    path.write_text(
        "import pytest\n\n\ndef test_1():\n    pass\n\n\ndef test_2():\n    pass\n\n\n"
        "def test_3():\n    assert 1 == 2\n\n\n"
        "@pytest.mark.skip\n@pytest.mark.parametrize('x', [1, 2, 3])\ndef test_4(x):\n    pass\n"
    )
    monkeypatch.setattr(all_suites, "SUITES", {"small": [str(path)]})
    row = all_suites.run_suite("small")
    assert (row.suite, row.passed, row.failed, row.skipped) == ("small", 2, 1, 3)
    row = Row("small", 2, 1, 3, 0.25, "2026-01-01, abc")
    assert str(row) == "| small | 2 | 1 | 3 | 0.2 | 2026-01-01, abc |"


def raising(error):
    """A function that raises an error, whatever it is given."""

    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize(
    ("broken", "error", "reason", "rows"),
    [
        ("pytest", None, "pytest ended with 5", ["small | 0 | 1", "types, by file | 7 | 0"]),
        (
            "interpreter_for",
            subprocess.CalledProcessError(1, ["pip"]),
            "Command '['pip']' returned non-zero exit status 1",
            ["small | 0 | 1", "types, by file | 7 | 0"],
        ),
        (
            "run_types",
            ValueError("mypy has checked no files"),
            "mypy has checked no files",
            ["small | 1 | 0", "types, by file | 0 | 1"],
        ),
    ],
)
def test_what_cannot_be_run_is_a_failure_and_the_pages_are_written(
    broken, error, reason, rows, tmp_path, monkeypatch, capsys
):
    test = tmp_path / "test_small.py"
    test.write_text("" if broken == "pytest" else "def test_1():\n    pass\n")
    (tmp_path / "coverage.json").write_text("from an older run")
    monkeypatch.setattr(all_suites, "RESULTS", tmp_path)
    monkeypatch.setattr(all_suites, "COVERAGE", tmp_path / "coverage.json")
    monkeypatch.setattr(all_suites, "SUITES", {"small": [str(test)]})
    monkeypatch.setattr(all_suites, "run_types", lambda: Row(all_suites.TYPES, 7, 0, 0, 0.1))
    if error:
        monkeypatch.setattr(all_suites, broken, raising(error))
    with pytest.raises(SystemExit) as end:
        all_suites.main([])
    assert end.value.code == 1 and reason in capsys.readouterr().out
    page = (tmp_path / "test_all.md").read_text(encoding="utf-8")
    assert all(f"| {row} |" in page for row in rows)
    assert not (tmp_path / "coverage.md").exists()


def test_a_part_of_a_run_keeps_the_rows_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(all_suites, "RESULTS", tmp_path)
    monkeypatch.setattr(all_suites, "COVERAGE", tmp_path / "none.json")
    monkeypatch.setattr(all_suites, "SUITES", {suite: [] for suite in "abc"})
    all_suites.write_pages([Row("c", 1, 0, 0, 1.0, "day 1"), Row("gone", 1, 0, 0, 1.0)], [])
    all_suites.write_pages([Row("a", 2, 0, 0, 1.0, "day 2"), Row("c", 3, 0, 0, 1.0, "day 2")], [])
    text = (tmp_path / "test_all.md").read_text(encoding="utf-8")
    assert text.endswith("| a | 2 | 0 | 0 | 1.0 | day 2 |\n| c | 3 | 0 | 0 | 1.0 | day 2 |\n")
    assert list(all_suites.rows_on_the_page()) == ["a", "c"]


def make_python(path, version):
    """A program that says it is a Python of this version."""
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")
def test_another_python_is_a_given_environment_or_one_of_pyenvs(tmp_path, monkeypatch):
    monkeypatch.setattr(all_suites, "build_environment", lambda folder, python, pins: python)
    made = make_python(tmp_path / "pyenv/versions/3.99.1/bin/python", "3.99")
    make_python(tmp_path / "pyenv/versions/3.98.0/bin/python", "pyenv: command not found")
    assert all_suites.interpreter_for("Python 3.99") == made
    assert all_suites.interpreter_for("Python 3.98") is None
    folders = [tmp_path / "nowhere", tmp_path / "a", tmp_path / "b"]
    monkeypatch.setenv("TEST_ENVIRONMENTS", os.pathsep.join(map(str, folders)))
    make_python(tmp_path / "a/bin/python", "3.97")
    given = make_python(tmp_path / "b/bin/python", "3.99")
    assert all_suites.interpreter_for("Python 3.99") == given
    assert all_suites.interpreter_for("unit tests") == sys.executable


def test_a_suite_without_an_interpreter_is_skipped_with_a_line(capsys):
    assert all_suites.run_suite("Python 3.99") is None
    assert "Python 3.99: skipped, this machine has no such interpreter" in capsys.readouterr().out


def test_the_interpreter_of_this_run_is_no_other_python():
    assert f"3.{sys.version_info.minor}" not in all_suites.OTHER_PYTHONS


def test_types_are_counted_by_file():
    output = (
        "a/b.py:3: error: one  [misc]\na/b.py:4: error: two  [misc]\nc.py:1: error: three  [misc]\n"
        "c.py:1: note: a note\nFound 3 errors in 2 files (checked 7 source files)\n"
    )
    assert all_suites.count_files(output) == (5, 2)
    assert all_suites.count_files("Success: no issues found in 1 source file") == (1, 0)
    with pytest.raises(ValueError, match="No module named mypy"):
        all_suites.count_files("No module named mypy")


def test_the_page_of_coverage_names_the_least_covered_first():
    def summary(missing):
        return {
            "summary": {
                "missing_lines": missing,
                "num_statements": 40,
                "percent_covered": 100 - 2.5 * missing,
            }
        }

    files = {f"{name}.py": summary(missing) for missing, name in enumerate("abcdefghijklm")}
    totals = {"percent_covered": 85.0, "num_statements": 520}
    page = all_suites.coverage_page({"files": files, "totals": totals})
    assert "85.0% of 520 statements in 13 files" in page
    rows = [line for line in page.splitlines() if ".py" in line]
    assert rows[0] == "| m.py | 12 of 40 | 70% |"
    assert [row[2] for row in rows] == list("mlkjihgfed")


def test_the_page_of_faults_has_a_table_for_each_kind(tmp_path):
    (tmp_path / "faults.xml").write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.faults.test_downloads" name="x" time="1.25"><properties>'
        '<property name="fault" value="403"/><property name="said" value="a | b"/>'
        "</properties></testcase>"
        '<testcase classname="tests.faults.test_images" name="y" time="0"><failure/></testcase>'
        '<testcase classname="tests.faults.test_images" name="z" time="0">'
        '<skipped message="no disk"/></testcase>'
        "</testsuite></testsuites>"
    )
    page = all_suites.faults_page(tmp_path / "faults.xml", "2026-01-01, abc")
    assert "## Downloads" in page and page.count("## Images") == 1
    assert "| 403 | a \\| b | 1.2 |" in page
    assert "| y | **failed** | 0.0 |" in page and "| z | not run: no disk | 0.0 |" in page
