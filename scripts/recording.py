"""What the scripts that write pages of results share: where they ran, and rows of tables."""

import datetime
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def machine() -> str:
    """Name processor, cores and memory."""
    text = Path("/proc/cpuinfo").read_text()
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1e6
    return f"{len(names)} cores ({names[0] if names else platform.processor()}), {memory:.0f} GB, no GPU"


def occasion(folder: Path) -> str:
    """Name date, commit and machine: when `folder` was finished, and the commit of the checkout that it lies in."""
    done = folder / "DONE"
    day = datetime.date.fromtimestamp(done.stat().st_mtime) if done.exists() else datetime.date.today()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=folder)
    return f"on {day}, at commit {commit.stdout.strip()}, on a shared machine with {machine()}"


def row(*cells: object) -> str:
    """Write a row of a table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
