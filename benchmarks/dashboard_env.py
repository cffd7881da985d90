"""SAEDashboard's environment. It wants TransformerLens 2 and transformers 4, which cannot stand beside ours."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# A set that works together. Left to pip, it gets a pyarrow that refuses the numpy TransformerLens 2 wants, and
# torchvision and torchaudio of another build than torch, without which it runs.
REQUIREMENTS = HERE / "dashboard-requirements.txt"


def dashboard_python(folder: Path) -> Path:
    """The interpreter of a virtual environment in `folder`, made there if it is not."""
    python, done = folder / "bin" / "python", folder / "installed"
    if done.is_file() and done.read_text() == REQUIREMENTS.read_text():
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    # torch first and with what it needs, as the Makefile has it; then the rest, and nothing that is not in the list.
    _run([*pip, "-c", str(REQUIREMENTS), "torch"])
    _run([*pip, "--no-deps", "-r", str(REQUIREMENTS)])
    done.write_text(REQUIREMENTS.read_text())
    return python


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603
