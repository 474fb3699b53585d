"""Name and version of this program.

The package itself cannot be imported for this: it names the rooms that most modules must not know.
"""

VERSION = "0.1.0"
NAME = "stream-learner"
PROGRAM = f"{NAME} {VERSION}"
