"""The command `serve`: predictions over HTTP, on the real broker."""

import base64
import json
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from itertools import pairwise
from typing import Any

import grpc
import numpy as np
import pytest
from command_line import failure, stream_learner
from feed import digits, good, mixed
from harness import DEADLINE_S, Run
from served_predictions import with_id
from serving import MAX_IMAGES, Served, ask, metric, port, releases, serve
from talking import LENGTH, refusal, rest_of, talk
from test_follower import EVERY

from stream_learner import read_release
from stream_learner.config import ServeSettings
from stream_learner.contract.predictions import decode_prediction
from stream_learner.errors import ExitCode
from stream_learner.follow.serving.messages import MESSAGES, SERVICE
from stream_learner.local.broker import HOST, Broker
from stream_learner.streams import topics

PIXELS = 64
LOADS = 2
SWAPS = 5


@pytest.fixture(scope="module")
def served(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings: dict[str, Any] = {name.replace("__", "."): value for name, value in EVERY.items()}
    settings |= {"release.formats": ["safetensors", "onnx"], "release.format_wait_s": 120.0, "release.keep": 50}
    run = Run(broker, tmp_path_factory.mktemp("served"), 1, settings)
    server = serve(run)
    assert ask(server, "/v2/health/live").status == 200
    for path in ("/v2/health/ready", f"/v2/models/{run.id}", f"/v2/models/{run.id}/ready"):
        assert "has not released a model yet" in refusal(ask(server, path), 503)
    assert "has not released a model yet" in refusal(ask(server, f"/v2/models/{run.id}/infer", b"{}"), 503)
    assert "stream_learner_serving_release NaN" in ask(server, "/metrics").body.decode()
    run.feed(mixed(250))
    log = run.finish(run.start())
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)
    yield Served(run, log, server)
    run.close()


def test_predictions(served: Served) -> None:
    """Each form of a request gives the predictions that the worker has published."""
    images, labels = served.evaluation()
    release = read_release(served.run.id, served.run.broker.bootstrap_servers)
    expected = release.predict(images)
    assert expected.labels == labels
    assert "release in use" in served.server.text()
    shape = list(images.shape)
    described = {"name": "images", "datatype": "UINT8", "shape": shape}
    binary = described | {"parameters": {"binary_data_size": images.nbytes}}
    plain = {"id": "an id", "inputs": [described | {"data": images.ravel().tolist()}]}
    answers = [
        served.infer(plain),
        served.infer(plain | {"inputs": [described | {"data": images.tolist()}]}),
        served.infer({"inputs": [binary]}, images.tobytes()),
        ask(served.server, f"{served.model}/versions/{release.described.sequence}/infer", json.dumps(plain).encode()),
    ]
    for answer in answers:
        assert answer.status == 200
        assert LENGTH.lower() not in answer.headers
        found = answer.json()
        assert found["model_name"] == served.run.id
        assert found["model_version"] == str(release.described.sequence)
        assert found["parameters"] == {"epoch": 1}
        outputs = {output["name"]: output for output in found["outputs"]}
        assert outputs["labels"] == {"name": "labels", "datatype": "BYTES", "shape": shape[:1], "data": labels}
        assert outputs["probabilities"]["shape"] == list(expected.probabilities.shape)
        probabilities = np.reshape(outputs["probabilities"]["data"], expected.probabilities.shape)
        np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-5)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert answers[0].json()["id"] == "an id"
    assert "id" not in answers[2].json()


def test_binary_answers(served: Served) -> None:
    images, labels = served.evaluation()
    given = {"name": "images", "datatype": "UINT8", "shape": list(images.shape)}
    given["parameters"] = {"binary_data_size": images.nbytes}
    asked = [{"name": "probabilities"}, {"name": "labels", "parameters": {"binary_data": True}}]
    answer = served.infer({"inputs": [given], "outputs": asked}, images.tobytes())
    header = json.loads(answer.body[: int(answer.headers[LENGTH.lower()])])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert [output["name"] for output in header["outputs"]] == ["probabilities", "labels"]
    raw = answer.body[int(answer.headers[LENGTH.lower()]) :]
    assert header["outputs"][1]["parameters"] == {"binary_data_size": len(raw)}
    assert raw == b"".join(struct.pack("<I", len(label)) + label.encode() for label in labels)
    asked = [{"name": "logits"}, {"name": "labels", "parameters": {"binary_data": False}}]
    document = {"inputs": [given], "outputs": asked, "parameters": {"binary_data_output": True}}
    answer = served.infer(document, images.tobytes())
    header = json.loads(answer.body[: int(answer.headers[LENGTH.lower()])])
    logits, texts = header["outputs"]
    assert texts["data"] == labels
    raw = answer.body[int(answer.headers[LENGTH.lower()]) :]
    found = np.frombuffer(raw, "<f4").reshape(logits["shape"]).argmax(1)
    assert [served.log.manifest["release"]["labels"][index] for index in found] == labels


def test_encoded_images(served: Served) -> None:
    encoded = [image for image, _ in digits()[:MAX_IMAGES]]
    release = read_release(served.run.id, served.run.broker.bootstrap_servers)
    labels = release.predict(encoded).labels
    given: dict[str, Any] = {"name": "images", "datatype": "BYTES", "shape": [len(encoded)]}
    raw = b"".join(struct.pack("<I", len(image)) + image for image in encoded)
    binary = given | {"parameters": {"binary_data_size": len(raw)}}
    texts = given | {"data": [base64.b64encode(image).decode() for image in encoded]}
    for answer in (served.infer({"inputs": [texts]}), served.infer({"inputs": [binary]}, raw)):
        assert answer.status == 200
        assert answer.json()["outputs"][0]["data"] == labels


def test_a_stop_answers_requests_that_have_begun(served: Served) -> None:
    """Requests on their way to a connection without a request are answered too."""
    server = serve(served.run)
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)
    idle = talk(port(server))
    infer = f"{served.model}/infer"
    body = json.dumps({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}]})
    head = f"POST {infer} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    begun = talk(port(server), head.encode(), body[:100].encode())
    in_headers = talk(port(server), head[:10].encode())
    with ThreadPoolExecutor(LOADS) as threads:
        answered = threading.Barrier(LOADS + 1)
        busy = [threads.submit(ask_until_refused, port(server), infer, body, answered) for _ in range(LOADS)]
        answered.wait(DEADLINE_S)
        server.signal(signal.SIGTERM)
        assert all(one.result() > 1 for one in busy)
    begun.sendall(body[100:].encode())
    in_headers.sendall((head[10:] + body).encode())
    for connection in (begun, in_headers):
        answer = rest_of(connection)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"model_version"' in answer
        assert b"connection: close" in answer
    assert rest_of(idle) == b""
    assert '"event":"stopped"' in server.ends(0)


def ask_until_refused(port: int, page: str, body: str, answered: threading.Barrier) -> int:
    """Ask over a connection that is kept, then over further ones until one is refused. Return the number of answers."""
    answers = 0
    while True:
        connection = HTTPConnection(HOST, port, timeout=DEADLINE_S)
        try:
            connection.connect()
        except ConnectionRefusedError:
            return answers
        closed = False
        while not closed:
            connection.request("POST", page, body)
            response = connection.getresponse()
            response.read()
            assert response.status == 200
            closed = response.will_close
            answers += 1
            if answers == 1:
                answered.wait(DEADLINE_S)
        connection.close()


def test_a_stop_while_kafka_does_not_answer(served: Served) -> None:
    with socket.create_server((HOST, 0)) as silent:
        address = f"{HOST}:{silent.getsockname()[1]}"
        server = serve(served.run, servers=address)
        with silent.accept()[0]:
            server.stop()


def test_grpc(served: Served) -> None:
    """The same server answers over gRPC. `tests/follow/test_serving_grpc.py` has the details."""
    server = serve(served.run, grpc_port=0)
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)
    address = f"{HOST}:{port(server, 'grpc_port')}"
    images, labels = served.evaluation()
    given = {"name": "images", "datatype": "UINT8", "shape": images.shape}
    request = MESSAGES["ModelInferRequest"](
        model_name=served.run.id, inputs=[given], raw_input_contents=[images.tobytes()]
    )
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        answer = MESSAGES["ModelInferResponse"].FromString(infer(request.SerializeToString()))
        assert answer.raw_output_contents[0] == b"".join(
            struct.pack("<I", len(label)) + label.encode() for label in labels
        )
        page = ask(server, "/metrics").body.decode()
        assert 'stream_learner_serving_requests_total{status="200"} 1.0' in page
        assert f"stream_learner_serving_images_total {len(labels)}.0" in page
        file = served.run.folder / "grpc.toml"
        servers = served.run.broker.bootstrap_servers
        file.write_text(
            f'run.id = "{served.run.id}"\nkafka.bootstrap_servers = "{servers}"\n'
            f"serve.port = 0\nserve.grpc_port = {address.split(':')[1]}\n"
        )
        said = failure(stream_learner("serve", file, folder=served.run.folder), ExitCode.USAGE)
        assert f"cannot listen on {address}; change serve.host or serve.grpc_port" in said
        server.signal(signal.SIGTERM)
        assert '"event":"stopped"' in server.ends(0)


def test_what_prevents_a_start(served: Served) -> None:
    run = served.run
    run_id, servers = f'run.id = "{run.id}"\n', f'kafka.bootstrap_servers = "{run.broker.bootstrap_servers}"\n'
    file = run.folder / "server.toml"
    file.write_text(run_id + servers + f"serve.port = {port(served.server)}\n")
    said = failure(stream_learner("serve", file, folder=run.folder), ExitCode.USAGE)
    assert f"cannot listen on 127.0.0.1:{port(served.server)} (Address already in use)" in said
    file.write_text(run_id + servers + 'serve.host = "192.0.2.1"\nserve.port = 0\n')
    said = failure(stream_learner("serve", file, folder=run.folder), ExitCode.USAGE)
    assert "cannot listen on 192.0.2.1:0" in said
    file.write_text(run_id + servers + 'serve.port = 0\ntopics.prefix = "other"\n')
    said = failure(stream_learner("serve", file, folder=run.folder), ExitCode.TOPICS)
    assert "has no topic other.checkpoints" in said
    assert ServeSettings().host == "127.0.0.1"


def test_exactly_the_share_is_published(served: Served) -> None:
    images, labels = served.evaluation()
    server = serve(served.run, publish_share=0.3)
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)

    def predict(start: int, end: int, *more: tuple[dict[str, Any], bytes], **fields: Any) -> None:
        given = {"name": "images", "datatype": "UINT8", "shape": [end - start, 8, 8, 1]}
        inputs = [given | {"parameters": {"binary_data_size": PIXELS * (end - start)}}, *(one for one, _ in more)]
        header = json.dumps({"inputs": inputs} | fields).encode()
        body = b"".join([header, images[start:end].tobytes(), *(binary for _, binary in more)])
        answer = ask(server, f"{served.model}/infer", body, **{LENGTH.replace("-", "_"): str(len(header))})
        assert answer.status == 200
        assert answer.json()["outputs"][0]["data"] == labels[start:end]

    given: dict[str, Any] = {"name": "ids", "datatype": "BYTES"}
    for index in range(5):
        predict(index, index + 1, id=f"r\u00e9quest {index}")
    texts = [f"text {index}" for index in range(5, 12)]
    predict(5, 12, (given | {"shape": [7], "data": texts}, b""))
    raw = b"".join(struct.pack("<I", 1) + bytes([65 + index]) for index in range(4))
    predict(12, 16, (given | {"shape": [4], "parameters": {"binary_data_size": len(raw)}}, raw))
    predict(16, 19, id="of several images")
    predict(19, 20)
    refusal(ask(server, f"{served.model}/infer", b"{}"), 400)
    server.stop()
    ids = [*(f"r\u00e9quest {index}" for index in range(5)), *texts, "A", "B", "C", "D", *[None] * 4]
    chosen = [index for index in range(20) if (index + 1) * 3 // 10 > index * 3 // 10]
    assert len(chosen) == 6
    found = [decode_prediction(read.key, read.value) for read in served.run.read("predictions")]
    release = served.log.manifest["release"]["sequence"]
    assert [(one.id, one.label, one.epoch, one.release, one.run_id) for one in found] == [
        (ids[index], labels[index], 1, release, served.run.id) for index in chosen
    ]
    expected = read_release(served.run.id, served.run.broker.bootstrap_servers).predict(images).probabilities
    for index, one in zip(chosen, found, strict=True):
        assert abs(one.probability - expected[index].max()) < 1e-5


def test_predictions_that_are_not_published_are_counted(served: Served) -> None:
    run = served.run
    server = serve(run, publish_share=1, request_timeout_s=1.0)
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)
    body = json.dumps({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}]})

    def predict() -> bool:
        return ask(server, f"{served.model}/infer", body.encode()).status == 200

    assert predict()
    server.until("record", lambda: metric(server, "predictions_published_total") == 1)
    run.delete_topic(f"{run.prefix}.predictions")
    assert predict()
    server.until("loss", lambda: metric(server, "predictions_unpublished_total") == 1)
    assert "predictions are not published" in server.text()
    topics.create(run.settings)
    server.until("record", lambda: predict() and metric(server, "predictions_published_total") > 1)
    asked = metric(server, "images_total")
    server.until("end", lambda: sum(metric(server, f"predictions_{x}published_total") for x in ("", "un")) == asked)
    server.stop()
    served.run.delete_topic(f"{run.prefix}.predictions")
    file = run.folder / "unpublished.toml"
    text = f'run.id = "{run.id}"\nkafka.bootstrap_servers = "{run.broker.bootstrap_servers}"\n'
    file.write_text(f"{text}serve.port = 0\nserve.publish_share = 0.1\n")
    said = failure(stream_learner("serve", file, folder=run.folder), ExitCode.TOPICS)
    assert f"topic {run.prefix}.predictions is missing" in said
    topics.create(run.settings)


def test_releases_are_swapped_under_load(served: Served) -> None:
    """No request fails while releases arrive, and each answer is that of the release that it names."""
    run, server = served.run, served.server
    images = served.evaluation()[0][:3]
    given = {"name": "images", "datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    body = json.dumps({"inputs": [given], "outputs": [{"name": "probabilities"}]})
    done = threading.Event()
    answers: list[tuple[int, list[float]]] = []
    failures: list[object] = []

    def load() -> None:
        connection = HTTPConnection(HOST, port(server), timeout=DEADLINE_S)
        while not done.wait(0.002):
            connection.request("POST", f"{served.model}/infer", body)
            response = connection.getresponse()
            document = json.loads(response.read())
            if response.status == 200:
                answers.append((int(document["model_version"]), document["outputs"][0]["data"]))
            else:
                failures.append(document)
        connection.close()

    threads = [threading.Thread(target=load) for _ in range(LOADS)]
    for thread in threads:
        thread.start()
    worker = run.start()
    for seed in range(SWAPS):
        before = metric(server, "release")
        run.feed(mixed(220, seed))
        server.until("swap", lambda before=before: metric(server, "release") > before)
    log = run.finish(worker)
    last = log.manifest["release"]["sequence"]
    server.until("last release", lambda: metric(server, "release") == last)
    done.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not failures
    seen = {version for version, _ in answers}
    assert len(seen) > SWAPS
    expected = {sequence: release.predict(images).probabilities for sequence, release in releases(log).items()}
    for version, found in answers:
        np.testing.assert_allclose(np.reshape(found, (3, -1)), expected[version], atol=1e-6)
    ordered = [expected[version] for version in sorted(seen)]
    assert all(np.abs(one - other).max() > 1e-4 for one, other in pairwise(ordered))
    assert np.allclose([np.sum(found) for _, found in answers], 3, atol=1e-5)
    versions = [version for version, _ in answers[:: len(answers) // 100]]
    assert versions == sorted(versions)


def test_published_predictions_are_scored_when_their_labels_arrive(served: Served) -> None:
    """The last test of this run, which evaluates predictions from here on."""
    run = served.run
    images, _ = served.evaluation()
    run.overrides["served.evaluate"] = True
    worker, server = run.start(), serve(run, publish_share=1)
    server.until("release", lambda: ask(server, "/v2/health/ready").status == 200)
    ids = [f"served {index}" for index in range(len(images))]
    inputs = [
        {"name": "images", "datatype": "UINT8", "shape": [*images.shape], "data": images.ravel().tolist()},
        {"name": "ids", "datatype": "BYTES", "shape": [len(ids)], "data": ids},
    ]
    answer = ask(server, f"{served.model}/infer", json.dumps({"inputs": inputs}).encode()).json()
    labels, release = answer["outputs"][0]["data"], int(answer["model_version"])
    server.until("records", lambda: metric(server, "predictions_published_total") == len(ids))
    drafts = [with_id(draft, id_) for draft, id_ in zip(good(len(ids)), ids, strict=True)]
    run.feed(drafts)
    right = sum(dict(d.headers)["label"].decode() == label for d, label in zip(drafts, labels, strict=True))
    outcome = '{outcome="scored"}'
    worker.until("scores", lambda: worker.metric("served_predictions_total").get(outcome) == len(ids))
    run.learned(worker)
    worker.stop()
    server.stop()
    run.predictions = len(run.read("predictions"))
    scored = [one for window in run.check().windows for one in (window["served"] or {"releases": []})["releases"]]
    assert {(one["epoch"], one["release"]) for one in scored} == {(1, release)}
    assert sum(one["accuracy"]["correct"] for one in scored) == right
    assert sum(one["accuracy"]["total"] for one in scored) == len(ids)
