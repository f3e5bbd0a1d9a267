"""Run the command line with ``python -m app``."""

import os
import signal

if __name__ == "__main__":
    if os.getpid() == 1:  # the kernel drops signals to the first process of a container for which it has no handler
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))

    from app.cli.main import main

    main()
