"""deploy/kubernetes.yaml: valid, and in agreement with itself, the image and the program."""

import os
import re
import signal
import subprocess
import tomllib
from contextlib import suppress
from pathlib import Path

import kubernetes_validate
import pytest
from prometheus_client import CollectorRegistry
from ruamel.yaml import YAML

from stream_learner.config import Settings
from stream_learner.errors import ExitCode, Remedy
from stream_learner.monitoring.health import Health
from stream_learner.monitoring.pages import Pages
from stream_learner.run.gang import Rank, check_ranks

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFEST = DEPLOY / "kubernetes.yaml"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
(SETTINGS_FILE,) = re.findall(r'^CMD \["run", "(.+)"\]$', DOCKERFILE, re.MULTILINE)
OBJECTS = {document["kind"]: document for document in YAML(typ="safe").load_all(MANIFEST)}
JOB = OBJECTS["Job"]["spec"]
POD = JOB["template"]["spec"]
(WORKER,) = POD["containers"]
LABELS = JOB["template"]["metadata"]["labels"]
DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings.model_validate(tomllib.loads(OBJECTS["ConfigMap"]["data"]["worker.toml"]))


@pytest.mark.parametrize("kind", OBJECTS)
def test_each_object_follows_its_schema(kind: str):
    (version,) = re.findall(r"Kubernetes \((.+) or newer\)", MANIFEST.read_text())
    assert kubernetes_validate.validate(OBJECTS[kind], version, strict=True) == version


def environment(index: int) -> dict[str, str]:
    """Return the variables of the pod with this index, as the cluster sets them."""
    fields = {"metadata.labels['batch.kubernetes.io/job-completion-index']": str(index)}
    return {
        variable["name"]: variable.get("value") or fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        for variable in WORKER["env"]
    }


def test_each_pod_is_a_rank(settings: Settings):
    ranks = JOB["completions"]
    assert JOB["completionMode"] == "Indexed"
    assert JOB["parallelism"] == ranks
    assert [Rank.from_environment(environment(index)) for index in range(ranks)] == [
        Rank(index, ranks) for index in range(ranks)
    ]
    check_ranks(ranks, settings.run.shards)


def test_the_ranks_find_rank_0_before_it_is_ready():
    service = OBJECTS["Service"]
    assert environment(0)["MASTER_ADDR"] == f"{OBJECTS['Job']['metadata']['name']}-0.{service['metadata']['name']}"
    assert POD["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == LABELS
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_only_the_ranks_reach_each_other_and_everybody_the_monitoring_pages():
    policy = OBJECTS["NetworkPolicy"]["spec"]
    ranks = {"matchLabels": LABELS}
    (port,) = WORKER["ports"]
    assert policy["podSelector"] == ranks
    assert policy["ingress"] == [{"from": [{"podSelector": ranks}]}, {"ports": [{"port": port["name"]}]}]


def test_codes_that_ask_for_a_person_end_the_job_and_after_all_others_the_worker_starts_again():
    ask_for_a_person = sorted(code for code in ExitCode if code.remedy is Remedy.PERSON)
    (fails,) = JOB["podFailurePolicy"]["rules"]
    assert fails == {
        "action": "FailJob",
        "onExitCodes": {"containerName": WORKER["name"], "operator": "In", "values": ask_for_a_person},
    }
    assert WORKER["restartPolicyRules"] == [
        {"action": "Restart", "exitCodes": {"operator": "NotIn", "values": ask_for_a_person}}
    ]
    # A Job accepts the policy only with this one.
    assert POD["restartPolicy"] == WORKER["restartPolicy"] == "Never"


@pytest.fixture
def start(tmp_path: Path):
    """Start the command of a pod, with a shell script in place of the program."""
    program = tmp_path / "stream-learner"
    started = []

    def start(script: str) -> subprocess.Popen[str]:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        command = [*WORKER["command"], *WORKER["args"]]
        started.append(
            subprocess.Popen(command, env={"PATH": path}, stdout=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1]

    yield start
    for process in started:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("code", [ExitCode.OK, ExitCode.DIVERGED, 128 + signal.SIGKILL])
def test_a_pod_ends_with_the_code_of_the_program(start, code: int):
    process = start(f'echo "$@"; exit {code}')
    assert process.communicate(timeout=DEADLINE_S)[0] == f"run {SETTINGS_FILE}\n"
    assert process.returncode == code


def test_a_pod_that_is_removed_waits_for_the_last_save_and_does_not_end_with_0(start):
    process = start("trap 'echo saved; exit 0' TERM; echo learning; while :; do sleep 0.01; done")
    assert process.stdout.readline() == "learning\n"
    process.terminate()
    assert process.communicate(timeout=DEADLINE_S)[0] == "saved\n"
    assert process.returncode == 128 + signal.SIGTERM


def test_the_pods_and_the_settings_agree(settings: Settings):
    assert POD["terminationGracePeriodSeconds"] > settings.run.stop_deadline_s
    (port,) = WORKER["ports"]
    assert settings.monitoring.host == "0.0.0.0"
    assert port["containerPort"] == settings.monitoring.port
    pages = Pages(CollectorRegistry(), Health(settings.monitoring.live_timeout_s))
    # While the ranks wait for each other, the worker lives but is not ready.
    for probe, status in (("livenessProbe", "200 OK"), ("readinessProbe", "503 Service Unavailable")):
        request = WORKER[probe]["httpGet"]
        assert request["port"] == port["name"]
        assert pages.answer(request["path"], {}).status == status


def test_the_pods_and_the_image_agree():
    user, home = re.findall(r"--uid (\d+) .*--home-dir (\S+)", DOCKERFILE)[0]
    security = POD["securityContext"]
    assert {security[name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}
    mounts = {mount["name"]: mount["mountPath"] for mount in WORKER["volumeMounts"]}
    assert mounts["home"] == home
    assert f"{mounts['settings']}/worker.toml" == SETTINGS_FILE
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert volumes["settings"]["configMap"]["name"] == OBJECTS["ConfigMap"]["metadata"]["name"]
