"""oxlint over the viewer's files as they are joined: one scope, in which nothing is missing and nothing is left over.

Each file by itself is looked at by `make check`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from crossvis_tl.page.build import SCRIPTS, VIEW_ONLY, read

OXLINT = Path(sys.executable).with_name("oxlint")


def complaints(tmp_path: Path, names: list[str], *rules: str) -> list[str]:
    script = tmp_path / "joined.js"
    script.write_text("(() => {\n" + "\n".join(read(f"viewer/{name}") for name in names) + "})();\n", encoding="utf-8")
    config = tmp_path / "rules.json"
    config.write_text('{"env": {"browser": true, "es2024": true}}')
    command = [str(OXLINT), "-c", str(config), "-A", "all", "--format", "unix", str(script)]
    for rule in rules:
        command += ["-D", rule]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [line for line in said.splitlines() if "[Error" in line]


@pytest.mark.parametrize("view", ["feature", "prompt", "live"])
def test_a_page_has_all_that_its_script_names(tmp_path: Path, view: str) -> None:
    """What one view does without (`VIEW_ONLY`) is not called there, but for what it asks `HEAD.view` first."""
    names = [name for name in SCRIPTS if VIEW_ONLY.get(name, view) == view]
    missing = {line.split("'")[1] for line in complaints(tmp_path, names, "no-undef")}
    assert missing <= {"featureView", "featureMap", "promptView", "liveView", "jumpBox"}


def test_nothing_in_the_viewer_is_left_over(tmp_path: Path) -> None:
    assert complaints(tmp_path, list(SCRIPTS), "no-undef", "no-unused-vars", "prefer-const") == []


def test_what_is_missing_and_left_over_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.read", lambda _: "const unused = nowhere;")
    found = complaints(tmp_path, ["one.js"], "no-undef", "no-unused-vars")
    assert len(found) == 2
    assert "'nowhere'" in found[0] + found[1]
