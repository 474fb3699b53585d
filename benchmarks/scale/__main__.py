"""Write `docs/scaling.md`: figures of two ranks, a simulation of up to 128, and the plan of a large run.

`python -m benchmarks.scale` needs finished rounds of `python -m benchmarks.performance ranks`.
"""

from pathlib import Path

from benchmarks.scale import page

DOCS = Path(__file__).parents[2] / "docs"

if __name__ == "__main__":
    for file in page.write(DOCS):
        print(f"wrote {file}")
