"""Releases as versions of a registered model of MLflow, through its REST API.

See https://mlflow.org/docs/latest/api_reference/rest-api.html. Each release becomes one version, also if the process is
killed between two requests: all objects in MLflow are looked up by their tags before they are created.
"""

from collections.abc import Mapping, Set
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from stream_learner.contract.manifest import Manifest, encode
from stream_learner.contract.objects import Earlier
from stream_learner.contract.pins import Chosen
from stream_learner.contract.topics import Names
from stream_learner.errors import DependencyError, StateError
from stream_learner.follow.posting import RequestError, Server, basic
from stream_learner.follow.releases import Release
from stream_learner.text import printable

TIMEOUT_S = 30.0
API = "/api/2.0/mlflow/"
ALIAS = "champion"
PREFIX = "stream_learner."
"""Of the tags' names."""
WITHDRAWN = PREFIX + "withdrawn"
WITHDRAWN_DESCRIPTION = "Withdrawn: do not use this release."
# MLflow's limit on a tag of a model version.
MAX_TAG_CHARACTERS = 100_000
EXISTS, MISSING = "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"
BUSY = {408, 429}
UNAUTHORIZED = {401, 403}

T = TypeVar("T")


class RegistryUnavailableError(DependencyError):
    """Error for a registry that does not answer now. Try again later."""


class _RefusedError(StateError):
    """Error for a request that MLflow refuses. `code` is MLflow's `error_code`."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class _Failure(msgspec.Struct):
    error_code: str = ""
    message: str = ""


class _Experiment(msgspec.Struct):
    experiment_id: str


class _ExperimentFound(msgspec.Struct):
    experiment: _Experiment


class _RunInfo(msgspec.Struct):
    run_id: str
    status: str = ""


class _Run(msgspec.Struct):
    info: _RunInfo


class _RunCreated(msgspec.Struct):
    run: _Run


class _RunsFound(msgspec.Struct):
    runs: list[_Run] = []


class _Tag(msgspec.Struct):
    key: str
    value: str = ""


class _Version(msgspec.Struct):
    version: str | int
    description: str = ""
    tags: list[_Tag] = []
    aliases: list[str] = []


class _OneVersion(msgspec.Struct):
    model_version: _Version


class _VersionsFound(msgspec.Struct):
    model_versions: list[_Version] = []


class MLflow:
    """A registered model of MLflow, named after the run. The alias `champion` is the release in use."""

    def __init__(self, url: str, run_id: str, prefix: str, environment: Mapping[str, str]):
        """Check the URL of MLflow's server. Without a user in it, the variables of MLflow's clients hold credentials.

        `prefix` is the prefix of the run's topics. Raises UsageError.
        """
        authorization = None
        if user := environment.get("MLFLOW_TRACKING_USERNAME"):
            authorization = basic(user, environment.get("MLFLOW_TRACKING_PASSWORD", ""))
        elif token := environment.get("MLFLOW_TRACKING_TOKEN"):
            authorization = f"Bearer {token}"
        self._server = Server(url, "the URL of MLflow", TIMEOUT_S, authorization)
        self._name = run_id
        self._weights = Names.under(prefix).weights
        self._registered: set[Chosen] = set()  # earlier releases that have a version
        self._withdrawn: set[Chosen] = set()  # withdrawn releases whose version, if there is one, is marked

    def put(self, release: Release) -> str:
        """Make a version for the release and for each earlier one that is kept, unless it exists. Move the alias.

        Return MLflow's URI of the release's version. Raises RegistryUnavailableError when MLflow does not answer,
        StateError when it refuses, DependencyError when it refuses the credentials.
        """
        manifest = release.manifest
        for earlier in manifest.earlier:
            chosen = Chosen(manifest.epoch, earlier.sequence, earlier.object.digest)
            if chosen not in self._registered:
                self._ensure(manifest, earlier)
                self._registered.add(chosen)
        version = self._ensure(manifest, release.described.as_earlier(), release)
        self._call("POST", "registered-models/alias", {"name": self._name, "alias": ALIAS, "version": version})
        return f"models:/{self._name}/{version}"

    def withdraw(self, releases: Set[Chosen]) -> None:
        """Mark the versions of withdrawn releases. The alias leaves them. Raises the errors of `put`."""
        for chosen in releases - self._withdrawn:
            if version := self._find_version(_identity(chosen)):
                self._mark_withdrawn({"name": self._name, "version": version})
            self._withdrawn.add(chosen)

    def close(self) -> None:
        """Do nothing: each request has a connection of its own."""

    def _ensure(self, manifest: Manifest, one: Earlier, in_use: Release | None = None) -> str:
        """Return the version of a release. Create it if MLflow does not have it."""
        chosen = Chosen(manifest.epoch, one.sequence, one.object.digest)
        identity = _identity(chosen)
        if found := self._find_version(identity):
            return found
        self._withdrawn.discard(chosen)  # the new version is not marked
        run_id = self._ensure_run(identity, one, in_use)
        created = self._create_version(identity, run_id, manifest, one, in_use)
        return self._find_version(identity) or created

    def _find_version(self, identity: dict[str, str]) -> str | None:
        """Return the version of a release. Delete further ones.

        A request may still be carried out after its time-out, so a repetition may have created a second version.
        """
        wanted = urlencode({"filter": _filter({"name": self._name}, identity)})
        found = self._call("GET", f"model-versions/search?{wanted}", answer_type=_VersionsFound).model_versions
        versions = sorted((str(one.version) for one in found), key=lambda version: (len(version), version))
        for version in versions[1:]:
            try:
                self._call("DELETE", "model-versions/delete", {"name": self._name, "version": version})
            except _RefusedError as error:
                if error.code != MISSING:
                    raise
        return versions[0] if versions else None

    def _create_version(
        self, identity: dict[str, str], run_id: str, manifest: Manifest, one: Earlier, release: Release | None
    ) -> str:
        self._create("registered-models/create", {"name": self._name})
        document = {
            "name": self._name,
            "source": self._source(manifest, one),
            "run_id": run_id,
            "tags": _tags(identity | _lineage(manifest, one, release)),
        }
        created = self._call("POST", "model-versions/create", document, answer_type=_OneVersion)
        return str(created.model_version.version)

    def _mark_withdrawn(self, version: dict[str, object]) -> None:
        """Mark a version by a tag, and by a description if a person gave none. The tag comes last."""
        wanted = f"model-versions/get?{urlencode(version)}"
        found = self._call("GET", wanted, answer_type=_OneVersion).model_version
        if ALIAS in found.aliases:
            self._call("DELETE", "registered-models/alias", {"name": self._name, "alias": ALIAS})
        if WITHDRAWN in [tag.key for tag in found.tags]:
            return
        if not found.description:
            self._call("PATCH", "model-versions/update", version | {"description": WITHDRAWN_DESCRIPTION})
        self._call("POST", "model-versions/set-tag", version | {"key": WITHDRAWN, "value": "true"})

    def _ensure_run(self, identity: dict[str, str], one: Earlier, release: Release | None) -> str:
        """Return the run of MLflow that holds a release's figures. Create it if MLflow does not have it."""
        experiment_id = self._ensure_experiment()
        search = {"experiment_ids": [experiment_id], "filter": _filter({}, identity), "max_results": 1}
        runs = self._call("POST", "runs/search", search, answer_type=_RunsFound).runs
        made_ms = int(datetime.fromisoformat(one.created_at).timestamp() * 1000)
        if runs:
            info = runs[0].info
        else:
            run = {
                "experiment_id": experiment_id,
                "run_name": f"release {one.sequence}",
                "start_time": made_ms,
                "tags": _tags(identity),
            }
            info = self._call("POST", "runs/create", run, answer_type=_RunCreated).run.info
        if info.status != "FINISHED":
            # MLflow keeps one of equal figures, so a repetition adds nothing.
            metrics = [
                {"key": key, "value": value, "timestamp": made_ms, "step": one.sequence}
                for key, value in _metrics(one, release).items()
                if value is not None
            ]
            self._call("POST", "runs/log-batch", {"run_id": info.run_id, "metrics": metrics})
            finished = {"run_id": info.run_id, "status": "FINISHED", "end_time": made_ms}
            self._call("POST", "runs/update", finished)
        return info.run_id

    def _ensure_experiment(self) -> str:
        wanted = f"experiments/get-by-name?{urlencode({'experiment_name': self._name})}"
        try:
            return self._call("GET", wanted, answer_type=_ExperimentFound).experiment.experiment_id
        except _RefusedError as error:
            if error.code != MISSING:
                raise
        self._create("experiments/create", {"name": self._name})
        return self._call("GET", wanted, answer_type=_ExperimentFound).experiment.experiment_id

    def _source(self, manifest: Manifest, one: Earlier) -> str:
        """Return the object's URL. MLflow refuses paths of other machines: then name the place in Kafka."""
        url = manifest.url(one.object)
        return f"kafka://{self._weights}/{manifest.epoch}/{one.sequence}" if url.startswith("file:") else url

    def _create(self, endpoint: str, document: dict[str, object]) -> None:
        """Create what may exist."""
        try:
            self._call("POST", endpoint, document)
        except _RefusedError as error:
            if error.code != EXISTS:
                raise

    def _call(
        self,
        method: str,
        endpoint: str,
        document: dict[str, object] | None = None,
        answer_type: type[T] = dict[str, Any],
    ) -> T:
        try:
            status, answer = self._server.request(method, encode(document) if document else b"", API + endpoint)
        except RequestError as error:
            raise RegistryUnavailableError(f"MLflow at {self._server.host} cannot be reached: {error}") from None
        what = f"MLflow at {self._server.host} answered {method} {endpoint.partition('?')[0]} with status {status}"
        if status >= 500 or status in BUSY:
            raise RegistryUnavailableError(what)
        if status in UNAUTHORIZED:
            raise DependencyError(f"{what}; give the user in the URL, or in MLFLOW_TRACKING_USERNAME and _PASSWORD")
        if status != 200:
            failure = _decoded(answer, _Failure, what)
            raise _RefusedError(failure.error_code, printable(f"{what}: {failure.error_code} {failure.message}")[:500])
        return _decoded(answer, answer_type, what)


def _decoded(answer: bytes, wanted: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(answer, type=wanted)
    except msgspec.DecodeError as error:
        raise StateError(f"{what}, and the answer is not MLflow's: {error}; check the URL") from None


def _identity(chosen: Chosen) -> dict[str, str]:
    """Return the tags that identify a release."""
    return {
        PREFIX + "epoch": str(chosen.epoch),
        PREFIX + "sequence": str(chosen.sequence),
        PREFIX + "digest": chosen.digest,
    }


def _filter(attributes: dict[str, str], tags: dict[str, str]) -> str:
    """Write a search filter. Names and values hold no quotes."""
    parts = [f"{name} = '{value}'" for name, value in attributes.items()]
    return " and ".join([*parts, *(f"tags.`{name}` = '{value}'" for name, value in tags.items())])


def _tags(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items() if len(value) <= MAX_TAG_CHARACTERS]


def _lineage(manifest: Manifest, one: Earlier, release: Release | None) -> dict[str, str]:
    tags = {PREFIX + "object": manifest.url(one.object), PREFIX + "created_at": one.created_at}
    if release is not None:
        tags[PREFIX + "network"] = release.described.model.name
        tags[PREFIX + "program"] = manifest.program
        if release.is_of_its_manifest:
            tags[PREFIX + "offsets"] = encode(manifest.learned_positions).decode()
            if manifest.rows:
                tags[PREFIX + "rows"] = encode(manifest.rows).decode()
    return tags


def _metrics(one: Earlier, release: Release | None) -> dict[str, float | None]:
    figures: dict[str, float | None] = {"classes": one.classes}
    for split, score in ("test", one.test), ("validation", one.validation):
        figures[f"{split}_accuracy"] = score.accuracy
        figures[f"{split}_mean_recall"] = score.mean_recall
        figures[f"{split}_samples"] = score.total
    if release is not None:
        forgetting = release.described.forgetting
        figures["calibration_error"] = release.described.calibration_error
        figures["forgetting"] = forgetting.mean if forgetting else None
    return figures
