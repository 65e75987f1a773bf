"""The map is current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_file_stands_in_the_architecture_page_as_it_describes_itself():
    check = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "list_files"), "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr
