"""Directories of releases: what is in them, and what a reader sees while a writer is killed."""

import json
import os
import random
import re
import resource
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import DEADLINE_S, processes
from msgspec.structs import replace
from released import CLASSES, write_endlessly
from released import release as any_release

from stream_learner.contract import tensors
from stream_learner.contract.manifest import digest
from stream_learner.contract.window import Distribution
from stream_learner.errors import StateError, StoreError, UsageError
from stream_learner.follow.directories import LAYOUTS, Plain, open_directory
from stream_learner.follow.directories.base import NEW, NEXT, OLD
from stream_learner.follow.signing import SIGNATURE, Signer

KILLS = {"plain": 8, "triton": 2, "mlserver": 2, "kserve": 2, "huggingface": 2}
KEEP = 30
FILES = {"release.safetensors", "manifest.json", "labels.json", "preprocessing.json", "graph.onnx", "model.onnx"}
CARD = {"model.safetensors", "model.onnx", "config.json", "preprocessor_config.json", "README.md", "manifest.json"}
# Layouts whose directory is a model with versions, and the files that are beside the versions.
MODELS = {"triton": {"config.pbtxt"}, "mlserver": {"model-settings.json", "stream_learner_runtime.py"}}
FLOAT, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8


def graph() -> bytes:
    """A network that answers with its only parameter, for each image."""
    weight = onnx.TensorProto(name="network.weight", data_type=FLOAT, dims=[1, CLASSES])
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="parameters")
    value = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["network.weight"], [name]) for name in ("logits", "probabilities")],
        "constant",
        [value("images", UINT8, ["N", 8, 8, 1])],
        [value(name, FLOAT, [1, CLASSES]) for name in ("logits", "probabilities")],
        [weight],
    )
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


GRAPH = graph()
release = partial(any_release, graph=GRAPH)


def whole(folder: Path, layout: str = "plain") -> dict[str, Any]:
    """Return the manifest of a release's folder. Fails when a file is missing or damaged."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    described = manifest["release"]
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    version = f"digits/{described['sequence']}/"
    assert (
        files
        == {
            "plain": FILES,
            "triton": {"model.onnx", "labels.txt", "manifest.json"},
            "mlserver": {"model.onnx", "labels.json", "manifest.json"},
            "kserve": {"digits/config.pbtxt", version + "model.onnx", version + "labels.txt", "manifest.json"},
            "huggingface": CARD,
        }[layout]
    )
    (weight,) = onnx.load(folder / (version if layout == "kserve" else "") / "model.onnx").graph.initializer
    parameters = tensors.encode({"weight": np.frombuffer(weight.raw_data, np.float32).reshape(1, CLASSES)})
    assert digest(parameters) == described["object"]["digest"]
    for file, content in contents(described).items():
        if file in files:
            assert (folder / file).read_bytes() == content or json.loads((folder / file).read_bytes()) == content
    for file in {"release.safetensors", "model.safetensors"} & files:
        assert (folder / file).read_bytes() == parameters
    return manifest


def contents(described: dict[str, Any]) -> dict[str, Any]:
    """Return the content of files, as bytes or as a JSON document."""
    return {
        "graph.onnx": GRAPH,
        "labels.json": described["labels"],
        "preprocessing.json": described["preprocessing"],
        "labels.txt": "cat\n7\n\u00e9\n".encode(),
    }


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_reader_sees_whole_releases_while_the_writer_is_killed(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "digits" if layout in MODELS else tmp_path
    chance = random.Random(0)
    for _ in range(KILLS[layout]):
        writer = processes.Process(target=write_endlessly, args=(tmp_path, layout, GRAPH, KEEP), daemon=True)
        before, deadline = current(path, layout), time.monotonic() + DEADLINE_S
        writer.start()
        while current(path, layout) == before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        end = time.monotonic() + chance.uniform(0.02, 0.2)
        while time.monotonic() < end:
            read_current(path, layout)
        assert writer.is_alive()
        writer.kill()
        writer.join()
        read_current(path, layout)
        for folder in path.glob("[0-9]*"):
            whole(folder, layout)
    with open_directory(tmp_path, layout, "digits", KEEP):
        assert not {NEW, OLD, NEXT} & {*names(path)}


def current(path: Path, layout: str) -> str | None:
    """Return the name of the current release's folder, None before the first."""
    if layout == "mlserver":
        file = path / "model-settings.json"
        return json.loads(file.read_bytes())["parameters"]["version"] if file.exists() else None
    if layout == "triton":
        file = path / "config.pbtxt"
        found = re.search(r"versions: \[ (\d+) \]", file.read_text()) if file.exists() else None
        return found[1] if found else None
    return os.readlink(path / "current") if (path / "current").is_symlink() else None


def read_current(path: Path, layout: str) -> None:
    """The current release must be whole, unless KEEP later ones have replaced it."""
    name = current(path, layout)
    assert name
    try:
        assert whole(path / name, layout)["sequence"] == sequence_of(name)
    except FileNotFoundError:
        assert sequence_of(current(path, layout)) >= sequence_of(name) + KEEP


def sequence_of(name: str | None) -> int:
    assert name
    return int(name.split("-")[-1])


def test_a_release_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    with Plain(tmp_path) as directory:
        folder = directory.put(release(7))
        before = folder.stat()
        (tmp_path / "current").unlink()
    with Plain(tmp_path) as directory:
        assert directory.put(release(7)) == folder
    assert folder.stat() == before
    assert os.readlink(tmp_path / "current") == folder.name == "0001-00000007"


def test_a_later_epoch_and_topics_that_were_made_again(tmp_path: Path) -> None:
    with Plain(tmp_path) as directory:
        first = directory.put(release(7))
        again = directory.put(release(7, value=1))
        later = directory.put(release(2, epoch=2))
        assert directory.put(release(7, value=1)) == again
    assert [first.name, again.name, later.name] == ["0001-00000007", "0001-00000007.1", "0002-00000002"]
    assert (tmp_path / "current").resolve() == again
    assert whole(first)["release"] != whole(again)["release"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_what_was_written_is_deleted(tmp_path: Path, layout: str) -> None:
    with open_directory(tmp_path, layout, "digits", keep=2) as directory:
        path, first = directory.path, directory.put(release(1))
        others = {"0000-00000001", "notes.txt", "12", "backup", "0001-00000009"}
        for name in others - {"notes.txt", "backup", "0001-00000009"}:
            (path / name).mkdir()
        (path / "notes.txt").touch()
        shutil.copytree(first, path / "backup")
        (path / "0001-00000009").symlink_to("backup")
        kept = [directory.put(release(sequence)) for sequence in (2, 3, 4, 5)][-2:]
    assert {*names(path)} == others | {folder.name for folder in kept} | MODELS.get(layout, {"current"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_earlier_release_is_the_current_one_again(tmp_path: Path, layout: str) -> None:
    """As after a later one is withdrawn. The folder of the earlier one may have been deleted."""
    with open_directory(tmp_path, layout, "digits", keep=1) as directory:
        directory.put(release(9))
        folder = directory.put(release(3))
        assert current(directory.path, layout) == folder.name
        assert whole(folder, layout)["sequence"] == 3
        assert {*names(directory.path)} == {folder.name} | MODELS.get(layout, {"current"})


def test_leftovers_are_removed_and_readers_may_read(tmp_path: Path) -> None:
    (tmp_path / NEW).mkdir()
    (tmp_path / NEW / "release.safetensors").touch()
    (tmp_path / OLD).mkdir()
    (tmp_path / NEXT).symlink_to("nowhere")
    before = os.umask(0o022)
    with Plain(tmp_path) as directory:
        folder = directory.put(release(1))
    os.umask(before)
    assert names(tmp_path) == [folder.name, "current"]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {(file.name, file.stat().st_mode & 0o777) for file in folder.iterdir()} == {(name, 0o644) for name in FILES}


def test_one_process_writes(tmp_path: Path) -> None:
    with Plain(tmp_path), pytest.raises(UsageError, match="another process writes releases"):
        Plain(tmp_path)
    with Plain(tmp_path), open_directory(tmp_path, "triton", "digits"):
        pass


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written: Not a directory"):
        Plain(tmp_path / "file" / "releases")
    (tmp_path / "releases" / "current").mkdir(parents=True)
    with Plain(tmp_path / "releases") as directory, pytest.raises(StoreError, match="Is a directory"):
        directory.put(release(1))


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """The release before stays, and nothing of the new one. A limit on the size of files is met as a full disk is."""
    with Plain(tmp_path) as directory:
        first = directory.put(release(1))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.raises(StoreError, match="cannot be written: File too large"):
                directory.put(release(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == [first.name, "current"]
    assert whole(tmp_path / "current")["sequence"] == 1


def test_triton(tmp_path: Path) -> None:
    with open_directory(tmp_path, "triton", "digits") as directory:
        first = directory.put(release(7))
        assert first == tmp_path / "digits" / "7"
        assert (first / "labels.txt").read_text() == "cat\n7\né\n"
        assert (tmp_path / "digits" / "config.pbtxt").read_text() == CONFIG
        with pytest.raises(StateError, match=r"has no ONNX graph \(a reason\), which the layout triton needs"):
            directory.put(release(8, graph=None))
        later = directory.put(release(2, epoch=2))
    assert later.name == "1000000002"
    assert "versions: [ 1000000002 ]" in (tmp_path / "digits" / "config.pbtxt").read_text()
    assert names(tmp_path / "digits") == ["1000000002", "7", "config.pbtxt"]


def test_mlserver(tmp_path: Path) -> None:
    with open_directory(tmp_path, "mlserver", "digits") as directory:
        directory.put(release(7))
        later = directory.put(release(2, epoch=2))
    assert json.loads((tmp_path / "digits" / "model-settings.json").read_bytes()) == {
        "name": "digits",
        "platform": "onnxruntime",
        "implementation": "stream_learner_runtime.Release",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("logits", "probabilities")],
        "parameters": {"uri": f"./{later.name}/model.onnx", "version": later.name},
    }
    compile((tmp_path / "digits" / "stream_learner_runtime.py").read_bytes(), "runtime", "exec")


def test_kserve(tmp_path: Path) -> None:
    with open_directory(tmp_path, "kserve", "digits") as directory:
        folder = directory.put(release(7))
    assert folder.name == "0001-00000007"
    assert (folder / "digits" / "config.pbtxt").read_text() == CONFIG


def test_hugging_face(tmp_path: Path) -> None:
    with open_directory(tmp_path, "huggingface", "digits") as directory:
        folder = directory.put(release(7, graph=None))
        assert {*names(folder)} == CARD - {"model.onnx"}
        assert "has no figures of the samples' weights" in (folder / "README.md").read_text()
        weighted = release(8)
        figures = {"record": Distribution(12, 0.75, 0.0, 1.5), "combined": Distribution(12, 0.5, 0.0, 1.0)}
        reached = {"positions": {"images": {0: 5, 1: 6}}, "rows": {"images": {0: 9}}}
        weighted.manifest = replace(weighted.manifest, weights=figures, **reached)
        card = (directory.put(weighted) / "README.md").read_text()
        assert "| record | 12 | 0.75 | 0 | 1.5 |\n| weight | 12 | 0.5 | 0 | 1 |\n" in card
        assert "| images | 0 | 5 (after 9 rows) |\n| images | 1 | 6 |\n" in card
    config = json.loads((folder / "config.json").read_bytes())
    assert (config["id2label"], config["image_size"]) == ({"0": "cat", "1": "7", "2": "\u00e9"}, [8, 8])


class Marker(Signer):
    """A signer that writes the names of the files instead of a signature."""

    def __init__(self) -> None:
        pass

    def sign(self, folder: Path) -> None:
        (folder / SIGNATURE).write_text(" ".join([folder.name, *names(folder)]))


def test_a_signature_is_of_the_whole_folder(tmp_path: Path) -> None:
    with open_directory(tmp_path, "triton", "digits") as directory:
        unsigned = directory.put(release(7))
    with open_directory(tmp_path, "triton", "digits", signer=Marker()) as directory:
        signed = directory.put(release(7))
        assert directory.put(release(7)) == signed
    assert (unsigned.name, signed.name) == ("7", "1000000007")
    assert (signed / SIGNATURE).read_text() == "1000000007 labels.txt manifest.json model.onnx"
    with open_directory(tmp_path, "triton", "digits") as directory:
        assert directory.put(release(7)) == unsigned


def test_signing_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(UsageError, match=r'pip install "stream-learner\[signing\]"'):
        Signer(tmp_path / "key.pem")


CONFIG = """\
name: "digits"
platform: "onnxruntime_onnx"
max_batch_size: 256
input [
  { name: "images" data_type: TYPE_UINT8 dims: [ 8, 8, 1 ] }
]
output [
  { name: "logits" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "7/labels.txt" },
  { name: "probabilities" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "7/labels.txt" }
]
version_policy { specific { versions: [ 7 ] } }
dynamic_batching { }
"""


def test_a_plain_release_without_a_graph(tmp_path: Path) -> None:
    with Plain(tmp_path) as directory:
        folder = directory.put(release(1, graph=None))
    assert {*names(folder)} == FILES - {"graph.onnx", "model.onnx"}
