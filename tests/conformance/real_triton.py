"""A real Triton, from the environment `.venv/conformance`, which `make conformance` installs from its lock file."""

import os
import shutil
import signal
import subprocess
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from harness import DEADLINE_S, POLL_S

from stream_learner.local.broker import HOST, free_port

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv" / "conformance"
PYTHON = ENVIRONMENT / "bin" / "python"
PROGRAMS = Path(__file__).with_name("triton")
PACKAGES = ENVIRONMENT / "lib" / "python3.11" / "site-packages"
SERVER = PACKAGES / "pytriton" / "tritonserver"


class Triton:
    """A Triton. In explicit mode it loads a model when it is asked to, in the mode `none` all models at its start.

    The distribution has no other backend than `python`. Those in `triton/` are written in Python for it.
    """

    def __init__(self, repository: Path, folder: Path, mode: str = "explicit"):
        self._mode = mode
        self._repository, self._backends, self._log = repository, folder / "backends", folder / "triton.log"
        if not self._backends.exists():
            shutil.copytree(SERVER / "backends" / "python", self._backends / "python")
            stub = SERVER / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
            shutil.copy(stub, self._backends / "python")
            for name in ("onnxruntime", "reference"):
                (self._backends / name).symlink_to(PROGRAMS / name)
        self.http_port, self.grpc_port = free_port(), free_port()
        self.start()

    def start(self) -> None:
        command = [
            SERVER / "bin" / "tritonserver",
            f"--model-repository={self._repository}",
            f"--backend-directory={self._backends}",
            f"--model-control-mode={self._mode}",
            "--disable-auto-complete-config",
            "--allow-metrics=false",
            f"--http-address={HOST}",
            f"--http-port={self.http_port}",
            f"--grpc-address={HOST}",
            f"--grpc-port={self.grpc_port}",
        ]
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(PACKAGES / "nvidia_pytriton.libs"),
            "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
        }
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + DEADLINE_S
        while not self._ready():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline
            time.sleep(POLL_S)

    def load(self, model: str) -> tuple[int, str]:
        """Load a model. Return status and text of the answer."""
        request = Request(f"http://{HOST}:{self.http_port}/v2/repository/models/{model}/load", b"{}", method="POST")
        try:
            with urlopen(request) as answer:
                return answer.status, ""
        except HTTPError as error:
            return error.code, error.read().decode()

    def stop(self) -> None:
        """Stop the server and the processes of its models."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _ready(self) -> bool:
        connection = HTTPConnection(HOST, self.http_port, timeout=1)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
