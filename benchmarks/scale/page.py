"""The page on scaling, from measured rounds and the simulation."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median

from matplotlib.figure import Figure

from benchmarks.performance import decoding, summary
from benchmarks.performance.rounds import figures, rates
from benchmarks.performance.tables import spread
from benchmarks.plots import COLOURS, DPI, MARKERS
from benchmarks.scale import clusters, measured
from benchmarks.scale.clusters import RANKS, SAMPLES, SHARDS, Run
from benchmarks.scale.measured import Measured
from benchmarks.scale.plan import muon_operations, state_bytes
from benchmarks.scale.simulation import Load, Stages, simulate
from benchmarks.scale.traffic import of_step, sent_bytes

TEMPLATE = Path(__file__).with_name("page.md")
NETWORKS = "cnn", "resnet18_slim"
GPU_RANKS = 128
MIB = 1024 * 1024
READ_AHEAD_BYTES = 64 * MIB
"""Records that each shard reads ahead, at most."""


def write(docs: Path) -> list[Path]:
    """Write the page and its plot. Return the files. Raises DataError without the rounds."""
    found = {model: measured.measured(model) for model in NETWORKS}
    runs = {model: clusters.cpus(model) for model in NETWORKS} | {"ResNet-50 on GPUs": clusters.gpus()}
    plot = docs / "benchmarks" / "scaling.png"
    _draw(runs, plot)
    page = docs / "scaling.md"
    here, defaults = measured.loopback(), clusters.settings("cnn", 28, 1)
    assert here.sums
    exchanges = of_step(runs["cnn"].network, SAMPLES)
    rows: dict[str, object] = {
        "threads_or_ranks": "\n".join(map(_advice, NETWORKS, found.values())),
        "two_ranks": _lines(_two_ranks(model, of) for model, of in found.items()),
        "rounds": min(len(rounds) for of in found.values() for rounds in of),
        "gathers": sum(one.method == "gathered" for one in exchanges),
        "sums": sum(one.method == "summed" for one in exchanges),
        "bytes": _lines(_bytes(name, run) for name, run in runs.items()),
        "validation": _lines(row for model, of in found.items() for row in _validation(model, of)),
        "worst": _worst(found),
        "beside": ", ".join(f"{measured.slower_beside_another(of):.2f} times (`{m}`)" for m, of in found.items()),
        "models": " | ".join(runs),
        "lines": " | ".join(["---:"] * len(runs)),
        "efficiency": _lines([f"{n}", *(f"{run.efficiency(n):.2f}" for run in runs.values())] for n in RANKS),
        "loads_models": " | ".join(f"{name}, {n}" for name in runs for n in (16, 128)),
        "loads_lines": " | ".join(["---:"] * 2 * len(runs)),
        "loads": _lines(
            [name, *(f"{run.efficiency(n, load):.2f}" for run in runs.values() for n in (16, 128))]
            for name, load in clusters.loads().items()
        ),
        "plan": _lines(_plan(runs["ResNet-50 on GPUs"])),
        "limits": _limits(runs["ResNet-50 on GPUs"]),
        "shards": SHARDS,
        "samples": SAMPLES,
        "batch": SHARDS * SAMPLES,
        "fewer": SHARDS * SAMPLES / 32,
        "max_items": defaults.memory.max_items,
        "items_of_shard": defaults.memory.max_items // SHARDS,
        "tcp_hop": 1e6 * clusters.TCP_HOP_S,
        "call_us": 1e6 * here.call_s,
        "sum_gb": 1e-9 / here.sums.byte_s,
        "nccl_call": 1e6 * clusters.NCCL_CALL_S,
        "nccl_hop": 1e6 * clusters.NCCL_HOP_S,
        "images_per_s": clusters.A100_IMAGES_PER_S,
        "photo_kb": clusters.PHOTO_BYTES / 1e3,
        "jpeg_kb": mean(len(example.image) for example in decoding.examples()["jpeg224"]) / 1e3,
        "deviations": ", ".join(f"{model} {measured.stages(of).deviation:.2f}" for model, of in found.items()),
        "gpu_deviation": clusters.DEVIATION,
    }
    page.write_text(TEMPLATE.read_text().format_map(rows))
    return [page, plot]


def _lines(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _advice(model: str, found: Measured) -> str:
    of_threads = summary.ratio(found.kafka, "2 ranks", ["2 threads"])
    faster = median(rates(found.kafka, "2 ranks")) > median(rates(found.kafka, "2 threads"))
    better = (
        "two ranks are better"
        if faster
        else "two threads in one process are better (`learning.threads`, without shards)"
    )
    return f"* `{model}`: {better}. Two ranks of one thread learn {of_threads} times as fast as two threads."


def _two_ranks(model: str, found: Measured) -> list[str]:
    kafka = found.kafka
    return [
        f"`{model}`",
        *(spread(rates(kafka, side), ",.0f") for side in ("1 rank", "2 ranks", "2 threads")),
        *(summary.ratio(kafka, "2 ranks", [side]) for side in ("1 rank", "2 threads")),
        spread(figures(kafka, "2 ranks", "collectives_ms_per_step"), ".1f"),
        f"{median(figures(kafka, '2 ranks', 'sent_bytes_per_step')) / 1e3:,.0f}",
    ]


def _bytes(name: str, run: Run) -> list[str]:
    collectives = of_step(run.network, SAMPLES)
    largest = max(one.shard_bytes for one in collectives)
    return [name, f"{largest / 1e6:.1f}", *(f"{sent_bytes(collectives, SHARDS, n) / 1e6:.1f}" for n in (2, 8, 128))]


def _predicted(model: str, found: Measured, ranks: int, *, from_kafka: bool) -> float:
    """Return the records/s of the two shards of the measurement, with 16 new samples in each.

    Two ranks take as much longer for everything as two runs that exchange nothing do here.
    """
    factor = measured.slower_beside_another(found) if ranks > 1 else 1.0
    alone = measured.stages(found)
    stages = Stages._make(factor * time_s for time_s in alone)._replace(deviation=alone.deviation)
    if not from_kafka:
        stages = stages._replace(input_s=0.0)
    model_ = clusters.network(model, 28, 1, 10)
    samples = measured.BATCH // 2
    load = Load([1.0, 1.0])
    return simulate(stages, measured.loopback(), of_step(model_, samples), samples, load, ranks).records_per_s


def _differences(model: str, found: Measured) -> dict[str, tuple[list[float], float]]:
    """Return the measured rates and the predicted one by their name."""
    named = {}
    for where, rounds in (("in memory", found.memory), ("from Kafka", found.kafka)):
        for ranks, side in ((1, "1 rank"), (2, "2 ranks")):
            predicted = _predicted(model, found, ranks, from_kafka=where == "from Kafka")
            named[f"`{model}`, {where}, {side}"] = rates(rounds, side), predicted
    return named


def _validation(model: str, found: Measured) -> list[list[str]]:
    return [
        [name, spread(rates_, ",.0f"), f"{predicted:,.0f}", f"{100 * (predicted / median(rates_) - 1):+.0f} %"]
        for name, (rates_, predicted) in _differences(model, found).items()
    ]


def _worst(found: dict[str, Measured]) -> str:
    """Return the largest difference of a prediction, and its name."""
    off = {
        name: predicted / median(rates_) - 1
        for model, of in found.items()
        for name, (rates_, predicted) in _differences(model, of).items()
    }
    name, worst = max(off.items(), key=lambda item: abs(item[1]))
    return f"{100 * worst:+.0f} % ({name})"


def _plan(run: Run) -> list[list[str]]:
    rate, records = run.rate(GPU_RANKS), run.rate(GPU_RANKS).records_per_s
    collectives = of_step(run.network, SAMPLES)
    sent = sum(one.sent_bytes(SHARDS, GPU_RANKS) for one in collectives if one.method == "summed")
    small = [one for one in collectives if one.method == "gathered"]
    small_s = sum(run.between.seconds(one, SHARDS, GPU_RANKS) for one in small)
    sums_s = sum(run.between.seconds(one, SHARDS, GPU_RANKS) for one in collectives if one.method == "summed")
    gpu_s, decode_s = SAMPLES * run.stages.sample_s, SAMPLES * run.stages.input_s
    operations, state = muon_operations(run.network), state_bytes(run.network)
    values: list[tuple[str, str, str]] = [
        (
            "passes of a GPU in a step",
            f"{SAMPLES} x (1 + 3 + 1/3) / {clusters.A100_IMAGES_PER_S:,} images/s",
            _ms(gpu_s),
        ),
        ("decoding in a step, one thread", f"{SAMPLES} x {1e3 * run.stages.input_s:.2f} ms", _ms(decode_s)),
        ("Muon, on every rank", f"{operations / 1e9:.0f} GFLOP", _ms(run.stages.step_s)),
        ("small exchanges", f"{len(small)} x ({1e6 * run.between.call_s:.0f} µs + 127 hops)", _ms(small_s)),
        ("sums", f"{sent / 1e6:.0f} MB sent and received", _ms(sums_s)),
        ("a step, with waits", "simulated", _ms(1 / rate.steps_per_s)),
        ("... in which a rank waits or sends", "simulated", f"{100 * rate.waiting:.0f} %"),
        ("records", f"{SHARDS * SAMPLES:,} x {rate.steps_per_s:.1f} steps/s", f"{records:,.0f}/s"),
        (
            "from Kafka",
            f"x {clusters.PHOTO_BYTES / 1e3:.0f} kB",
            f"{8 * records * clusters.PHOTO_BYTES / 1e9:.1f} Gbit/s",
        ),
        ("... to each host", "/ 16", f"{8 * records * clusters.PHOTO_BYTES / 16e9:.2f} Gbit/s"),
        ("cores that decode", f"x {1e3 * run.stages.input_s:.2f} ms", f"{records * run.stages.input_s:.0f}"),
        ("tensors of a state", "network, average, moments", f"{state / 1e6:.0f} MB"),
        ("... written", "every 30 s, by rank 0", f"{state / 30e6:.0f} MB/s"),
        (
            "gradients of a rank's shards",
            f"1 shard x {max(c.shard_bytes for c in collectives) / 1e6:.0f} MB",
            _mb(run, 1),
        ),
        ("... of all shards in one rank", f"{SHARDS} shards", _mb(run, SHARDS)),
        ("records that a rank reads ahead", "1 shard x 64 MiB", "0.07 GB"),
        ("... that one rank of all shards reads", f"{SHARDS} shards", f"{SHARDS * READ_AHEAD_BYTES / 1e9:.1f} GB"),
    ]
    return [list(row) for row in values]


def _mb(run: Run, shards: int) -> str:
    largest = max(one.shard_bytes for one in of_step(run.network, SAMPLES))
    return f"{shards * largest / 1e9:.1f} GB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _limits(run: Run) -> str:
    """Return what each removed cost would bring, the largest first."""
    now = run.rate(GPU_RANKS).records_per_s
    stages, between = run.stages, run.between
    without: dict[str, Callable[[], Run]] = {
        "Decoding on the thread that learns. The GPU waits meanwhile. Decoding ahead on other threads would hide it": (
            lambda: run._replace(stages=stages._replace(input_s=0.0))
        ),
        "Small exchanges around a ring of all ranks. Fewer of them, or a tree, would shorten them": (
            lambda: run._replace(between=between._replace(call_s=0.0, hop_s=0.0))
        ),
        "Sums, which begin after the backward pass. Sums of the last layers beside it would hide most of them": (
            lambda: run._replace(
                between=between._replace(sums=between._replace(call_s=0.0, hop_s=0.0, byte_s=0.0, sums=None))
            )
        ),
        "Muon's update, which every rank computes for all matrices. Each rank could compute a share and send it": (
            lambda: run._replace(stages=stages._replace(step_s=0.0))
        ),
        "Ranks of different speed": lambda: run._replace(stages=stages._replace(deviation=0.0)),
    }
    gains = {name: 100 * (changed().rate(GPU_RANKS).records_per_s / now - 1) for name, changed in without.items()}
    ordered = sorted(gains.items(), key=lambda item: -item[1])
    lines = [f"{i}. {name}. Without this cost: {gain:+.0f} % records/s." for i, (name, gain) in enumerate(ordered, 1)]
    lines.append(
        f"\nFewer ranks need more memory, down to the one process of `rebuild`. With all {SHARDS} shards, it has the "
        "gradients of all of them in memory at once, see the table."
    )
    return "\n".join(lines)


def _draw(runs: dict[str, Run], file: Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for (name, run), colour, marker in zip(runs.items(), COLOURS, MARKERS, strict=False):
        for load, line in (("all shards full", "-"), ("uneven shards", ":")):
            values = [run.efficiency(n, clusters.loads()[load]) for n in RANKS]
            axes.plot(RANKS, values, line, marker=marker, color=colour, label=f"{name}, {load}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(RANKS, list(map(str, RANKS)))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ranks")
    axes.set_ylabel("efficiency")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=DPI)
