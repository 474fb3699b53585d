"""The program under measurement, as a command."""

import sys

COMMAND = [sys.executable, "-m", "stream_learner"]
