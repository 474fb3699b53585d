"""The page on scaling, from measured rounds and the simulation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, median

from matplotlib.figure import Figure

from benchmarks.performance import decoding, rounds, summary
from benchmarks.performance.ranks import IDLE_RANK_SIDES
from benchmarks.performance.rounds import QUIET_CORES, cores_elsewhere, figures, rates
from benchmarks.performance.tables import spread
from benchmarks.plots import COLOURS, DPI, MARKERS
from benchmarks.runs import Run as Round
from benchmarks.scale import clusters, measured
from benchmarks.scale.clusters import RANKS, SAMPLES, SHARDS, Run
from benchmarks.scale.measured import Measured
from benchmarks.scale.plan import muon_operations, state_bytes
from benchmarks.scale.simulation import Load, Stages, simulate
from benchmarks.scale.traffic import of_step, sent_bytes

TEMPLATE = Path(__file__).with_name("page.md")
NETWORKS = "cnn", "resnet18_slim"
GPU_RANKS = 128
UNCLEAR = 0.9, 1.1
"""Ratios between these are too close to 1 for a statement."""
PLACES = {"ranks": "in memory", "ranks from Kafka": "from Kafka"}
STAGE_NAMES = {
    "step_s": "the fixed part of a step",
    "shard_s": "the part for each shard",
    "sample_s": "the part for each image",
    "input_s": "the time to read and decode a record",
    "save_s": "the fixed part of a save",
    "shard_save_s": "a save's part for each shard",
}


def write(docs: Path) -> list[Path]:
    """Write the page and its plot. Return the files. Raises DataError without the rounds."""
    found = {model: measured.measured(model) for model in NETWORKS}
    runs = {model: clusters.cpus(model) for model in NETWORKS} | {"ResNet-50 on GPUs": clusters.gpus()}
    too_high = {name for name, of in found.items() if "step_s" in measured.below_zero(of)}
    marked = {f"{name} (too high)" if name in too_high else name: run for name, run in runs.items()}
    plot = docs / "benchmarks" / "scaling.png"
    _draw(marked, plot)
    page = docs / "scaling.md"
    here, defaults = measured.loopback(), clusters.settings("cnn", 28, 1)
    assert here.sums
    exchanges, measurements = of_step(runs["cnn"].network, SAMPLES), _measurements(found)
    rows: dict[str, object] = {
        "rounds": _lines([name, *_basis(of)] for name, of in measurements),
        "rounds_in_short": _rounds_in_short(measurements),
        "quiet": QUIET_CORES,
        "unclear": " and ".join(map(str, UNCLEAR)),
        "threads_or_ranks": "\n".join(advice(model, of.kafka) for model, of in found.items()),
        "two_ranks": _lines(_two_ranks(model, of) for model, of in found.items()),
        "gathers": sum(one.method == "gathered" for one in exchanges),
        "sums": sum(one.method == "summed" for one in exchanges),
        "bytes": _lines(_bytes(name, run) for name, run in runs.items()),
        "validation": _lines(row for model, of in found.items() for row in _validation(model, of)),
        "worst": _worst(found),
        "stages": _lines(_stages(model, of) for model, of in found.items()),
        "below_zero": "\n".join(_below_zero(found)),
        "beside": ", ".join(
            f"{spread(measured.slower_beside_another(of), '.2f')} times (`{model}`)" for model, of in found.items()
        ),
        "models": " | ".join(marked),
        "lines": " | ".join(["---:"] * len(runs)),
        "efficiency": _lines([f"{n}", *(f"{run.efficiency(n):.2f}" for run in runs.values())] for n in RANKS),
        "efficiencies": _lines(_efficiencies(runs)),
        "above_one": _above_one(runs),
        "loads_models": " | ".join(f"{name}, {n}" for name in marked for n in (16, 128)),
        "loads_lines": " | ".join(["---:"] * 2 * len(runs)),
        "loads": _lines(
            [name, *(f"{run.efficiency(n, load):.2f}" for run in runs.values() for n in (16, 128))]
            for name, load in clusters.loads().items()
        ),
        "idle_rank": "\n".join(idle_rank(subject.model, of) for subject, of in rounds.finished("idle rank").items()),
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


def _measurements(found: dict[str, Measured]) -> list[tuple[str, list[Round]]]:
    """Return the names and the rounds of all measurements behind the page."""
    named = [
        (f"`{model}`, {where}", rounds_)
        for model, of in found.items()
        for where, rounds_ in zip((*PLACES.values(), "one rank beside another run"), of, strict=True)
    ]
    alone = {"collectives alone": "exchanges", "decoding alone": "decoding"}
    return [
        *named,
        *((f"`{subject.model}`, a rank without records", of) for subject, of in rounds.finished("idle rank").items()),
        *((name, measured.rounds_of(part, "cnn")) for name, part in alone.items()),
    ]


def _basis(of: list[Round]) -> tuple[str, str]:
    """Return the number of rounds, and the cores that others kept busy, in bold if the figures are unreliable."""
    busy = cores_elsewhere(of)
    return str(len(of)), f"**{busy:.2f}**" if busy > QUIET_CORES else f"{busy:.2f}"


def _rounds_in_short(named: list[tuple[str, list[Round]]]) -> str:
    single = sum(len(of) == 1 for _, of in named)
    disturbed = [name for name, of in named if cores_elsewhere(of) > QUIET_CORES]
    noise = f" **Other programs disturbed {len(disturbed)}: {'; '.join(disturbed)}.**" if disturbed else ""
    return f"{single} of {len(named)} measurements have a single round, so their spread is unknown.{noise}"


def advice(model: str, found: list[Round]) -> str:
    """Return whether two ranks or two threads were faster."""
    ranks, threads = (rates(found, side) for side in ("2 ranks", "2 threads"))
    ratios = [a / b for a, b in zip(ranks, threads, strict=True)]
    least, most = UNCLEAR
    if median(ratios) > most:
        faster = "two ranks were faster"
    elif median(ratios) < least:
        faster = "two threads in one process were faster (`learning.threads`, without shards)"
    else:
        faster = "no clear difference"
    times = spread(ratios, ".2f")
    return f"* `{model}`: {faster}. Two ranks of one thread learned {times} times as fast as two threads."


def idle_rank(model: str, found: list[Round]) -> str:
    """Return the steps/s of two ranks from Kafka, with records for both and for only one."""
    both, one = (
        spread([1e3 / step_ms for step_ms in figures(found, side, "step_ms")], ".1f") for side in IDLE_RANK_SIDES
    )
    rounds_, busy = _basis(found)
    return (
        f"* Two ranks from Kafka (`{model}`), measured: {one} steps/s beside a rank without records, {both} if both\n"
        f"  have records. A step then learns twice as many. Rounds: {rounds_}, elsewhere: {busy}."
    )


def _two_ranks(model: str, found: Measured) -> list[str]:
    kafka = found.kafka
    return [
        f"`{model}`",
        *(spread(rates(kafka, side), ",.0f") for side in ("1 rank", "2 ranks", "2 threads")),
        *(summary.ratio(kafka, "2 ranks", [side]) for side in ("1 rank", "2 threads")),
        spread(figures(kafka, "2 ranks", "collectives_ms_per_step"), ".1f"),
        f"{median(figures(kafka, '2 ranks', 'sent_bytes_per_step')) / 1e3:,.0f}",
        *_basis(kafka),
    ]


def _stages(model: str, found: Measured) -> list[str]:
    used, below = measured.stages(found)._asdict(), measured.below_zero(found)
    names = "step_s", "shard_s", "sample_s", "input_s"
    limited = (f"{1e3 * used[n]:.2f}" + (f" (fit: {1e3 * below[n]:.2f})" if n in below else "") for n in names)
    return [f"`{model}`", *limited, *_basis(found.memory)]


def _below_zero(found: dict[str, Measured]) -> Iterator[str]:
    """Yield a sentence for each stage whose fit was below 0."""
    for model, of in found.items():
        for name, time_s in measured.below_zero(of).items():
            effect = "its efficiencies below are too high" if name == "step_s" else "its figures are unreliable"
            yield (
                f"* `{model}`: the fit of {STAGE_NAMES[name]} is below 0 ({1e3 * time_s:.1f} ms), "
                f"which is impossible.\n  The simulation has 0 instead, so {effect}."
            )


def _efficiencies(runs: dict[str, Run]) -> Iterator[list[str]]:
    for name, model, found in _of_two_ranks(runs):
        simulated = f"{runs[model].efficiency(2):.2f}"
        yield [name, spread(measured.efficiency(found), ".2f"), simulated, *_basis(found)]


def _of_two_ranks(runs: dict[str, Run]) -> Iterator[tuple[str, str, list[Round]]]:
    """Yield a name, the network and the rounds of each measurement of two ranks."""
    for part, where in PLACES.items():
        for subject, found in rounds.finished(part).items():
            if subject.model in runs:
                yield f"`{subject.model}`, {where}, batch {subject.batch}", subject.model, found


def _above_one(runs: dict[str, Run]) -> str:
    above = [name for name, _, found in _of_two_ranks(runs) if median(measured.efficiency(found)) > 1]
    if not above:
        return ""
    return (
        f"\nMore than 1 ({'; '.join(above)}) means that one rank took more than twice\n"
        "as long as two ranks for the same images. The simulation does not explain this, and its cause was not "
        "measured.\n"
    )


def _bytes(name: str, run: Run) -> list[str]:
    collectives = of_step(run.network, SAMPLES)
    largest = max(one.shard_bytes for one in collectives)
    return [name, f"{largest / 1e6:.1f}", *(f"{sent_bytes(collectives, SHARDS, n) / 1e6:.1f}" for n in (2, 8, 128))]


def _predicted(model: str, found: Measured, ranks: int, *, from_kafka: bool) -> float:
    """Return the records/s of the two shards of the measurement, with 16 new samples in each.

    Two ranks take as much longer for everything as two runs that exchange nothing do here.
    """
    factor = median(measured.slower_beside_another(found)) if ranks > 1 else 1.0
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
    for where, of in zip(PLACES.values(), (found.memory, found.kafka), strict=True):
        for ranks, side in ((1, "1 rank"), (2, "2 ranks")):
            predicted = _predicted(model, found, ranks, from_kafka=where == "from Kafka")
            named[f"`{model}`, {where}, {side}"] = rates(of, side), predicted
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
    axes.set_ylabel("efficiency, simulated")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=DPI)
