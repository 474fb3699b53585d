"""Follows a run until the standard input ends. Runs in an environment that has only what the extra `follow` needs.

`follow.py RUN SERVERS STORE` prints a JSON object for each release in use, with the number of evaluation images and of
those whose prediction is the published one. The last object holds the cost of the process.
"""

import json
import re
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

from safetensors.numpy import load


def main(run: str, servers: str, store: str) -> None:
    began = time.perf_counter()
    from stream_learner import Follower, Release

    import_s = time.perf_counter() - began
    follower = Follower(run, servers)

    def close_at_the_end_of_input() -> None:
        sys.stdin.read()
        follower.close()

    def compared(release: Release) -> dict[str, int]:
        try:
            evaluation = load(Path(store, release.described.evaluation.key).read_bytes())
        except FileNotFoundError:  # the worker has replaced the release already
            return {}
        predicted = release.predict(evaluation["images"]).labels
        expected = [release.labels[index] for index in evaluation["predictions"]]
        equal = sum(one == other for one, other in zip(predicted, expected, strict=True))
        return {"images": len(expected), "equal": equal}

    closing = threading.Thread(target=close_at_the_end_of_input)
    closing.start()
    for release in follower:
        print(json.dumps({"sequence": release.described.sequence} | compared(release)), flush=True)
    closing.join()
    cost = {
        "import_s": round(import_s, 2),
        "memory_mib": resident_mib("VmRSS"),
        "peak_mib": resident_mib("VmHWM"),
        "package": str(Path(sys.modules["stream_learner"].__file__ or "")),
        "too_much": [name for name in ("torch", "onnx", "onnxscript") if find_spec(name)],
    }
    print(json.dumps(cost), flush=True)


def resident_mib(name: str) -> int:
    """Read a figure of this process in MiB. `resource` would report the peak of the parent if that was higher."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) // 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
