"""A training library that was built for another processor."""

import os
import signal

os.kill(os.getpid(), signal.SIGILL)
