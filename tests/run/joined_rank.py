"""A gang that joins as a worker does: `python joined_rank.py RANKS FOLDER [DEVICE [HUNG]]` launches it.

Each rank writes its sums to the folder, then sums until another rank ends, or until the file `leave` exists. The rank
HUNG hangs instead.
"""

import os
import sys
import time
from pathlib import Path

RUN = {"id": "r", "shards": 4}
LARGE = 300_001  # values whose sums are sent in slices
LIVE_TIMEOUT_S = 3.0


def main() -> None:
    from stream_learner.errors import StreamLearnerError
    from stream_learner.run import launcher

    try:
        if "RANK" in os.environ:
            take_part(Path(sys.argv[2]), *sys.argv[3:4])
        else:
            os._exit(launcher.launch(int(sys.argv[1]), [sys.executable, *sys.argv]))
    except StreamLearnerError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.code)
    os._exit(0)


def take_part(folder: Path, device: str = "cpu") -> None:
    from stream_learner.config import InputSettings, LearningSettings, RunSettings, Settings
    from stream_learner.monitoring.health import Health, Phase
    from stream_learner.run import gang

    health, hung = Health(LIVE_TIMEOUT_S), sys.argv[4:]
    rank = gang.Rank.from_environment()
    settings = Settings(
        run=RunSettings.model_validate(RUN),
        input=InputSettings(topics=["images"]),
        learning=LearningSettings(device=device),
    )
    joined = gang.join(rank, settings, os._exit, health)
    (folder / f"sum{rank.index}").write_bytes(sums(joined.parallel, device))
    (folder / f"draft.{rank.index}").write_text(str(os.getpid()))
    (folder / f"draft.{rank.index}").rename(folder / f"pid{rank.index}")
    health.enter(Phase.LEARNING)
    while hung == [str(rank.index)]:
        time.sleep(1)
    while not any(joined.parallel.objects([(folder / "leave").exists() for _ in joined.parallel.local])):
        health.beat()
    joined.leave()


def sums(parallel, device: str = "cpu") -> bytes:
    """Return sums whose bits depend on the order of the additions."""
    import torch

    rows = torch.randn(RUN["shards"], LARGE, generator=torch.Generator().manual_seed(0))
    mine = rows[parallel.local.start : parallel.local.stop].to(device)
    return b"".join(parallel.summed(part).cpu().numpy().tobytes() for part in (mine, mine[:, :10]))


if __name__ == "__main__":
    main()
