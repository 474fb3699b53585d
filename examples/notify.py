"""Print each release of a run as it arrives. Needs neither PyTorch nor ONNX Runtime.

python examples/notify.py RUN_ID [BOOTSTRAP_SERVERS]
"""

import sys
from contextlib import suppress

from stream_learner import Follower

with Follower(*sys.argv[1:3], compute=False) as follower, suppress(KeyboardInterrupt):
    for release in follower:
        test = release.described.test
        accuracy = "unknown" if test.accuracy is None else f"{test.accuracy:.1%} of {test.total} images"
        print(
            f"release {release.described.sequence} of {release.described.created_at}: "
            f"{len(release.labels)} classes, test accuracy {accuracy}, {len(release.data)} bytes",
            flush=True,
        )
