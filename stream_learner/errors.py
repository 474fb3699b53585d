"""Exit codes of the program, one for each cause, and the exceptions that carry them.

The codes are part of the interface: supervisors and scripts depend on them. `docs/operations.md` lists them, and a test
compares the two.
"""

import re
from enum import IntEnum, StrEnum


class Remedy(StrEnum):
    """Action that an exit code asks for. The docstring of each member is its line in the documentation."""

    NOTHING = "nothing"
    """The command ended as requested."""
    RESTART = "a restart"
    """A restart resumes the run, once the cause is gone."""
    PERSON = "a person"
    """A restarted worker exits the same way, or continues after the records that caused the exit. Look at these records
    first. Follow the last line of the log."""


class ExitCode(IntEnum):
    """Exit codes of all commands. The docstring of each member is its line in the documentation."""

    OK = 0
    """Done, or stopped on request after a last save."""
    INTERNAL = 1
    """A bug in stream_learner (please report it with the output of `--debug`), or in your own code. The message names
    your code in the second case."""
    USAGE = 2
    """The command line or the settings are wrong. Nothing was started."""
    KAFKA = 3
    """Kafka cannot be reached, or it refuses the credentials or a right (ACL). A restart tries again."""
    TOPICS = 4
    """A topic is missing or differs from what the run needs; see `stream-learner topics`."""
    STORE = 5
    """The object store cannot be read or written."""
    STATE = 6
    """The saved state or its manifest is missing, damaged, forged, or belongs to another model, strategy or cluster."""
    INPUT = 7
    """The input topic was created again, or unread records are lost: retention deleted them, or they are damaged on the
    brokers' disks."""
    FENCED = 8
    """Another worker of the same run took over, or a transaction exceeded its time-out. A restart recovers."""
    PUBLISH = 9
    """A publication failed, and its outcome is unknown. A supervisor must restart the worker, which recovers."""
    WATCHDOG = 10
    """A publication did not end in time, a stop exceeded its deadline, or one of several ranks hung. A restart
    recovers."""
    REJECTS = 11
    """Too many of the last records were rejected; see the dead-letter topic, then `run --accept-rejects`. A restart
    continues after these records."""
    DIVERGED = 12
    """Three batches in a row gave a loss or gradient that is not finite. A restart continues after these batches."""
    DATA = 13
    """A data set cannot be read, or has labels or images that no worker accepts. The message names them."""
    CONFLICT = 14
    """Another worker of this run is alive, and `run.on_conflict` is `exit`."""
    MISMATCH = 15
    """A rebuilt state differs from the published one."""
    MEMORY = 16
    """The process ran out of memory. Give it more memory, or lower the settings that the message names."""
    DEPENDENCY = 17
    """Something that the record format needs, such as a schema registry or a bucket, does not answer. Or a model server
    does not load a release, or a model registry does not answer. A restart tries again."""
    RANK = 18
    """Another rank of the run ended or does not answer, so this rank ended too. The log of that rank has the cause. A
    restart of all ranks recovers."""
    INTERRUPTED = 130
    """Stopped at once by Ctrl-C or a second signal. Records that were not saved are read again."""

    @property
    def remedy(self) -> Remedy:
        """Action that a supervisor should take.

        A bug (code 1) asks for a restart too: if one record ends the worker three times, a restart sets it aside.
        """
        if self in (ExitCode.OK, ExitCode.INTERRUPTED):
            return Remedy.NOTHING
        return Remedy.RESTART if self in CURED_BY_RESTART else Remedy.PERSON


CURED_BY_RESTART = {
    ExitCode.INTERNAL,
    ExitCode.KAFKA,
    ExitCode.STORE,
    ExitCode.FENCED,
    ExitCode.PUBLISH,
    ExitCode.WATCHDOG,
    ExitCode.MEMORY,
    ExitCode.DEPENDENCY,
    ExitCode.RANK,
}


class StreamLearnerError(Exception):
    """A failure that a person can act on. Its message says in one line what happened and what to do."""

    code = ExitCode.INTERNAL


class UsageError(StreamLearnerError):
    code = ExitCode.USAGE


class KafkaUnavailableError(StreamLearnerError):
    code = ExitCode.KAFKA


class TopicsError(StreamLearnerError):
    code = ExitCode.TOPICS


class StoreError(StreamLearnerError):
    code = ExitCode.STORE


class StateError(StreamLearnerError):
    code = ExitCode.STATE


class NoReleaseError(StateError):
    """The run has not released a model yet."""


class InputError(StreamLearnerError):
    code = ExitCode.INPUT


class FencedError(StreamLearnerError):
    code = ExitCode.FENCED


class PublishError(StreamLearnerError):
    code = ExitCode.PUBLISH


class RejectsError(StreamLearnerError):
    code = ExitCode.REJECTS


class DivergedError(StreamLearnerError):
    code = ExitCode.DIVERGED


class DataError(StreamLearnerError):
    code = ExitCode.DATA


class ConflictError(StreamLearnerError):
    code = ExitCode.CONFLICT


class MismatchError(StreamLearnerError):
    code = ExitCode.MISMATCH


class DependencyError(StreamLearnerError):
    code = ExitCode.DEPENDENCY


class RankLostError(StreamLearnerError):
    code = ExitCode.RANK


def error_with(code: int, message: str) -> StreamLearnerError:
    """Return the error that carries an exit code."""
    return next(error for error in StreamLearnerError.__subclasses__() if error.code == code)(message)


# Messages of torch, of CUDA, and of a thread without room for its stack.
OUT_OF_MEMORY = "can't allocate memory|out of memory|can't start new thread"


class OutOfMemoryError(StreamLearnerError):
    code = ExitCode.MEMORY


def out_of_memory(error: BaseException) -> OutOfMemoryError | None:
    """Return an OutOfMemoryError if Python, NumPy, torch or CUDA raised the error because memory ran out, else None."""
    if not isinstance(error, MemoryError) and not re.search(OUT_OF_MEMORY, str(error)):
        return None
    return OutOfMemoryError(
        f"the process ran out of memory ({type(error).__name__}: {error}); nothing is lost. Give it more memory, or "
        "lower memory.max_bytes, held_out.max_bytes, input.max_image_pixels or batch.size"
    )
