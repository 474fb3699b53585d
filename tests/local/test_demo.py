"""The demo as a newcomer runs it: processes, real Kafka, real images, to the end."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import tomllib
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from urllib.request import urlopen

import pytest
from terminal import CTRL_C, DEADLINE_S, Terminal

from stream_learner.contract.vocabulary import Split
from stream_learner.formats.splits import assign
from stream_learner.local.broker import Broker
from stream_learner.local.datasets import open_dataset

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "stream_learner", "demo"]
RUNS = Path(".stream-learner") / "demo"
LEARNING = r"releases +[1-9](?s:.*?)worker learning"


def processes(folder: Path) -> list[int]:
    """Return the processes that run in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is not ours
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
    return found


def await_end(process: int) -> None:
    """Return once a process that is not our child has ended."""
    with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(process)) as descriptor:
        assert select.select([descriptor], [], [], DEADLINE_S)[0], process


def figures(text: str, name: str) -> list[int]:
    """Return all values of a figure that the view showed, in their order."""
    view, _, _ = text.partition("all fed images are learned")
    return [int(value.replace(",", "")) for value in re.findall(rf"{name} +([\d,]+)", view)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the demo ran in a terminal, with a kill -9 of its worker, then of Kafka, and what it showed."""
    folder = tmp_path_factory.mktemp("demo")
    with Terminal([*DEMO, "--summary", "summary.json"], folder) as terminal:
        shown = terminal.await_text(LEARNING)
        killed = int(terminal.await_text(r"kill -9 (\d+)", shown.start())[1])
        os.kill(killed, signal.SIGKILL)
        terminal.await_text("worker learning, started again 1 x")
        (kafka,) = (process for process in processes(folder) if Path(f"/proc/{process}/cwd").readlink().name == "kafka")
        os.kill(kafka, signal.SIGKILL)
        terminal.await_text("worker waits for Kafka")
        assert terminal.wait() == 0, terminal.text
        assert terminal.cursor_is_shown
        assert terminal.modes_now() == terminal.modes
    return folder, terminal.text


@pytest.fixture
def summary(watched: tuple[Path, str]) -> dict:
    folder, _ = watched
    return json.loads((folder / "summary.json").read_text())


def test_it_learns_the_digits_though_worker_and_kafka_are_killed(watched: tuple[Path, str], summary: dict):
    _, text = watched
    assert summary["records_read"] == summary["learned"] + summary["validation"] + summary["test"] == 1797
    assert summary["rejected"] == 0
    assert summary["test_accuracy_before"] == 0
    assert summary["test_accuracy_after"] > 0.85
    assert re.search(r"the worker was started again \d+ x, and nothing is lost", text)


def test_counts_survive_a_restart_of_the_worker(watched: tuple[Path, str], summary: dict):
    _, text = watched
    assert "worker learning, started again 1 x" in text
    for name in ("learned", "held out", "steps", "releases", "read .*?"):
        shown = figures(text, name)
        assert shown[-1] > 0, name
        assert all(before <= after for before, after in pairwise(shown)), (name, shown)
    assert figures(text, "learned")[-1] == summary["learned"]
    assert figures(text, "held out")[-1] == summary["validation"] + summary["test"]


def test_accuracies_say_how_many_samples_they_are_of(watched: tuple[Path, str]):
    _, text = watched
    for name, at_least, source in (("prequential", 100, ""), ("validation", 50, "10% of"), ("test", 100, "20% of")):
        *_, (accuracy, samples, note) = re.findall(rf"{name} +([\d.]+)%  n = ([\d,]+) +(.*?)│", text)
        assert float(accuracy) > 50
        assert int(samples.replace(",", "")) >= at_least
        assert source in note


def test_the_time_left_shrinks_to_nothing(watched: tuple[Path, str]):
    _, text = watched
    left = re.findall(r"time left +(\d+):(\d\d)", text)
    assert len(left) > 5
    assert left[-1] == ("0", "00")


def test_the_view_and_the_summary_fit_in_the_terminal(watched: tuple[Path, str]):
    """A view that is too high ends in dots."""
    _, text = watched
    lines = text.splitlines()
    assert {len(line.rstrip()) for line in lines if line[:1] in {"╭", "│", "╰"}} == {80}
    assert " ... " not in text
    assert len(lines) - next(number for number, line in enumerate(lines) if "─ done ─" in line) < 24


def test_the_last_words_are_the_next_command(watched: tuple[Path, str], summary: dict):
    _, text = watched
    assert summary["next_command"] in ("stream-learner demo --resume", "make demo RESUME=1")
    assert re.search(rf"next +{summary['next_command']} ", text.splitlines()[-3])


def test_the_last_release_answers_an_image_that_was_not_learned(watched: tuple[Path, str], summary: dict):
    folder, text = watched
    asked = summary["asked"]
    assert f"image of {asked['label']}, held out, sent over HTTP: answer {asked['predicted']} (" in text
    assert 0.1 <= asked["probability"] <= 1
    assert f"/{asked['release']:012}-" in summary["release"]
    image = (folder / RUNS / "latest" / "image").read_bytes()
    (example,) = [example for example in open_dataset(None) if example.image == image]
    assert example.label == asked["label"]
    assert assign(example.id.encode(), validation=0.1, test=0.2) != Split.TRAIN


def asked(shell: str, url: str, folder: Path) -> dict:
    """Send to a URL what the command of a shell prints. Return the answer."""
    body = subprocess.run(shell, shell=True, cwd=folder, check=True, capture_output=True).stdout
    with urlopen(url.strip(), body, timeout=DEADLINE_S) as response:
        return json.load(response)


def test_resume_goes_on_with_the_last_run_and_serves_it_until_ctrl_c(watched: tuple[Path, str], summary: dict):
    folder, _ = watched
    command = [*DEMO, "--resume", "--serve", "--summary", "again.json"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout
        shown = ""
        while "\nserving at" not in shown:
            shown += (line := demo.stdout.readline())
            assert line, shown
        request, _, url = demo.stdout.readline().partition(" | curl -d @- ")
        answer = asked(request, url, folder)
        (folder / "image.png").write_bytes((folder / RUNS / "latest" / "image").read_bytes())
        (document,) = re.findall(
            r"```sh\n[^`]*curl .* -d @- (<<END\n(?s:.*?)\nEND\n)", (ROOT / "README.md").read_text()
        )
        assert asked(f"cat {document}", url, folder) == answer
        again = json.loads((folder / "again.json").read_text())
        demo.send_signal(signal.SIGINT)
        shown += demo.stdout.read()
    assert demo.returncode == 0, shown
    assert "\x1b" not in shown  # which is no terminal
    assert again["run_id"] == summary["run_id"] == answer["model_name"]
    assert again["asked"]["release"] == int(answer["model_version"]) > summary["asked"]["release"]
    assert answer["outputs"][0]["data"] == [again["asked"]["predicted"]]
    assert again["records_read"] == 1797
    assert again["test_accuracy_before"] == pytest.approx(summary["test_accuracy_after"])
    assert again["test_accuracy_after"] > 0.85


def test_the_readmes_lines_classify_an_image(watched: tuple[Path, str], tmp_path: Path):
    folder, _ = watched
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    run = folder / RUNS / "latest"
    run_id = tomllib.loads((run / "worker.toml").read_text())["run"]["id"]
    example = next(iter(open_dataset(None)))
    (tmp_path / "image.png").write_bytes(example.image)
    with Broker(run.resolve() / "kafka") as broker:
        snippet = snippet.replace('"inspection", "127.0.0.1:9092"', f'"{run_id}", "{broker.bootstrap_servers}"')
        done = subprocess.run(
            [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == example.label


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A thousand digits in class folders, in a part to train and one to test."""
    for index, example in enumerate(islice(open_dataset(None), 1000)):
        folder = tmp_path / "data" / ("test" if index % 5 == 0 else "train") / example.label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(example.image)
    return tmp_path / "data"


def test_a_kill_leaves_nothing_behind_and_ctrl_c_a_clean_terminal(tmp_path: Path, parts: Path):
    """On a data set with a test part, in a folder with older demos."""
    for day in range(1, 6):
        (tmp_path / RUNS / f"demo-2020010{day}-000000" / "kafka").mkdir(parents=True)
    (tmp_path / RUNS / "mine").mkdir()
    with Terminal([*DEMO, "--data", str(parts)], tmp_path) as terminal:
        terminal.await_text(r"test +[\d.]+%  n = \d+ +the data's test part")
        running = processes(tmp_path)
        assert len(running) >= 3  # the demo, its broker and worker, maybe the feeder
        terminal.process.kill()
        terminal.wait()
        assert terminal.cursor_is_shown
        assert terminal.modes_now() == terminal.modes
        assert "removed 3 older demos; the last 3 are kept" in terminal.text
        assert "200 of these images are its test part: fed with `split: test`, never learned" in terminal.text
    for process in running:
        await_end(process)
    runs = {path.name for path in (tmp_path / RUNS).iterdir()}
    assert {"demo-20200104-000000", "demo-20200105-000000", "mine", "latest"} < runs
    assert len(runs) == 5

    with Terminal([*DEMO, "--resume"], tmp_path) as terminal:
        terminal.await_text(LEARNING)
        typed = len(terminal.text)
        terminal.press(CTRL_C)
        terminal.await_text(r"worker saves and stops(?s:.*)stopping after a last save", typed)
        assert terminal.wait() == 130, terminal.text
        assert terminal.cursor_is_shown
        assert terminal.modes_now() == terminal.modes
        text = terminal.text
        # The terminal's `^C` stands in a line of its own, under the view, and is wiped out.
        assert re.search(r"\n\^C\r\x1b\[2K", terminal.raw.replace("\r\n", "\n"))
    assert re.search(r"stopped; nothing is lost\. `.*(RESUME=1|--resume)` continues this run\n$", text)
    assert "Traceback" not in text
    assert processes(tmp_path) == []
    last = (tmp_path / RUNS / "latest" / "worker.log").read_text().splitlines()[-1]
    assert "stopped" in last


def test_ctrl_c_while_kafka_starts(tmp_path: Path):
    with Terminal(DEMO, tmp_path) as terminal:
        terminal.await_text("starting Apache Kafka")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130
        assert "Traceback" not in terminal.text
    assert processes(tmp_path) == []


def test_a_second_ctrl_c_does_not_wait_for_the_save(tmp_path: Path):
    with Terminal(DEMO, tmp_path) as terminal:
        worker = int(terminal.await_text(r"kill -9 ([1-9]\d*)")[1])
        os.kill(worker, signal.SIGSTOP)  # it cannot save
        running = processes(tmp_path)
        terminal.press(CTRL_C)
        terminal.await_text("Ctrl-C again")
        terminal.press(CTRL_C)
        assert terminal.wait() == 130
        assert terminal.cursor_is_shown
        assert "Traceback" not in terminal.text
    for process in running:
        await_end(process)


def test_a_window_that_is_closed_stops_everything(tmp_path: Path):
    with Terminal(DEMO, tmp_path) as terminal:
        terminal.await_text(r"kill -9 [1-9]\d*")
        terminal.hang_up()
        assert terminal.wait() != 0
    assert processes(tmp_path) == []


@pytest.mark.parametrize("module", ["rich", "stream_learner.local.demo"])
def test_ctrl_c_while_it_is_imported_shows_no_traceback(tmp_path: Path, module: str):
    finder = f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
"""
    (tmp_path / "sitecustomize.py").write_text(finder)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(DEMO, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode in (130, -signal.SIGINT)
    assert (done.stdout, done.stderr) == ("", "")
