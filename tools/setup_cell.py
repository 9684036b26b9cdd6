# Setup: run this cell first. Outside the repository (Colab, Kaggle, a bare download) it fetches the rest.
import os
import subprocess
import sys
from pathlib import Path

here, address = Path.cwd(), os.environ.get("SERIES_REPO", "https://github.com/OWNER/attention-masks")
places = [here, *here.parents, here / "attention-masks"]
root = next((place for place in places if (place / "utils" / "masks.py").is_file()), None)
if root is None:
    root = here / "attention-masks"
    clone = ["git", "clone", "--quiet", "--depth", "1", address, str(root)]
    never_ask = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        subprocess.run(clone, check=True, capture_output=True, text=True, env=never_ask)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        raise RuntimeError(f"git cannot fetch {address}; set SERIES_REPO to name another place. {reason}") from None
sys.path.insert(0, str(root))

from tools.dependencies import install_missing

install_missing()
