"""JupyterLab's server. It ends when its standard input does, and so with whoever started it, however that one ends."""

from __future__ import annotations

import os
import signal
import sys
import threading

from jupyterlab.labapp import main


def end_with_starter() -> None:
    os.read(sys.stdin.fileno(), 1)  # not by `sys.stdin`, whose lock Python wants when it ends by itself
    os.kill(os.getpid(), signal.SIGTERM)


threading.Thread(target=end_with_starter, daemon=True).start()
sys.exit(main())
