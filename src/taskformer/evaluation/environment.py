"""With what code, packages and machine a result came about."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from taskformer._version import __version__

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "albumentations", "jsonargparse", "numpy")


def environment() -> dict[str, Any]:
    """Describe code, packages and machine."""
    return {
        "taskformer": __version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": sys.argv,
        "packages": {name: version(name) for name in PACKAGES},
    }


def git_revision() -> str | None:
    """Commit of the source, marked ``-dirty`` where files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
