"""Every error that crosses from one module into another, and what it means for a rollout or a run.

    UserError (ValueError)        the run ends with the message alone: whoever started it can act
    ├── ConfigError               a setting
    │   ├── MissingError          ... that needs what is not on this machine
    │   │   └── NoDataError
    │   ├── PluginError
    │   └── StudyError
    ├── DataError
    │   ├── NoDataError
    │   └── DemonstrationError
    ├── CheckpointError
    │   ├── NoCheckpointError
    │   └── DamagedError
    ├── NonFiniteError
    ├── DiskError
    ├── MetricsError
    ├── ShelfError
    ├── AlignmentError
    ├── StageError
    └── BudgetSpent
    ModelError                    the policy's own mistake: it reads the message, and is scored
    Fault                         ours, not the policy's: the rollout is not scored
    ├── InfraError                a tool
    │   └── LateError
    ├── SourceFault
    │   └── NotRecordedError
    ├── GradingError
    ├── EngineError
    ├── ServerLost                these four stay within axpo.engines.vllm, which tries again
    ├── AnswerFault
    ├── Refused
    ├── Interrupted
    └── LearnerLost            the loop goes on from its last checkpoint
    ContractError (ValueError)    code that calls axpo, or axpo itself, is wrong: a traceback
    ├── TreeError
    ├── RequestError
    ├── RenderingError
    └── ToolDefinitionError
    Stopped (BaseException)       a signal asked for the end; what was done is kept
    RunWarning (UserWarning)      the run goes on
    ├── DataWarning
    ├── MemoryWarning
    ├── CrowdedWarning
    ├── DamagedWarning
    ├── UnscoredWarning
    └── LostWarning

Two stand elsewhere, for the sandbox knows nothing of axpo but `axpo.pictures`: its own
`SandboxFault`, which the tool `python` turns into an `InfraError`, and `pictures.PictureError`,
which whoever reads the picture turns into one of these. Nothing is imported here, for everything
may raise what is here.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something that whoever runs a command can put right; the command prints the message alone."""


class ConfigError(UserError):
    """A setting is unknown, without effect, out of range or does not fit another; the message
    names the key."""


class MissingError(ConfigError):
    """A setting needs a package, a file or a device that is not here; the message says how to get
    it, and `axpo show` goes on without."""


class PluginError(ConfigError):
    """A "module:name" stands for nothing that fits (`axpo.plugins`); the message says which part
    of it is wrong, whoever asked adds the key."""


class StudyError(ConfigError):
    """A study's file is wrong, or its folder was made with another; the message names the key or
    the cells."""


class DataError(UserError):
    """A data set cannot be used; the message names file, row and field."""


class NoDataError(DataError, MissingError):
    """A data set is not there at all."""


class DemonstrationError(DataError):
    """SFT cannot learn from a demonstration; the message names the example and what is wrong."""


class CheckpointError(UserError):
    """A folder or Hub id holds no usable checkpoint."""


class NoCheckpointError(CheckpointError):
    """Nothing, or not all of it, is there."""


class DamagedError(CheckpointError):
    """A run's checkpoint cannot be read, so an older one is tried; the message names the file."""


class NonFiniteError(UserError):
    """The trainer met a loss, gradient or weight that is not finite; the message says whether the
    weights were changed by it."""


class DiskError(UserError):
    """A file could not be written; the message names it, the reason and what to do."""


class MetricsError(UserError):
    """A metrics file cannot be read, or a metric not written under its name."""


class ShelfError(UserError):
    """A folder holds another evaluation's groups."""


class AlignmentError(UserError):
    """Two evaluations that are compared are not of the same questions."""


class StageError(UserError):
    """Commands that quickstart or a study started have failed; the message holds the ends of their
    logs."""


class BudgetSpent(UserError):
    """No paid call of a search or a judge is left: what is recorded is answered, everything
    else stops the run."""


class ModelError(Exception):
    """A tool call itself is wrong; the policy reads the message, which names the field, as the
    call's answer."""


class Fault(Exception):
    """Something of ours failed, so that nothing can be said of the policy: the rollout is not
    scored."""


class InfraError(Fault):
    """A tool failed through no fault of the caller.

    `retryable`: the same call may work later, so that a tool with `retries` makes it again.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class LateError(InfraError):
    """A tool's deadline passed without a result."""


class SourceFault(Fault):
    """A source of answers (a search, a judge) failed through no fault of the caller; a tool turns
    this into an `InfraError`, a grader into a `GradingError`.

    `retryable`: the same call may work a moment later. `charged`: the call may have been billed.
    """

    def __init__(self, message: str, *, retryable: bool = False, charged: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.charged = charged


class NotRecordedError(SourceFault):
    """A replay's file has no answer to this question; the policy is told that nothing was found."""


class GradingError(Fault):
    """A grader could not tell whether an answer is right."""


class EngineError(Fault):
    """The engine failed to sample or to take weights."""


class ServerLost(Fault):
    """A vLLM server did not answer or cannot go on; the engine asks another, or this one again."""


class AnswerFault(Fault):
    """A vLLM server's answer is broken; another, or the same a moment later, may give a better."""


class Refused(Fault):
    """A vLLM server cannot serve what was asked; the message is its own."""


class Interrupted(Fault):
    """A request was taken back from a vLLM server that is well, for new weights."""


class LearnerLost(Fault):
    """A rank of a learner, or its node, is gone or hangs; the message says which and how. What was
    trained since the last checkpoint is lost with it."""


class ContractError(ValueError):
    """What was handed over breaks what the docstring asks: a mistake in code, not in a rollout."""


class TreeError(ContractError):
    """A segment, cut or span cannot be part of a trajectory tree."""


class RequestError(ContractError):
    """No engine can serve this request; the message names it and what is wrong."""


class RenderingError(ContractError):
    """Rendered tokens are not what the rollout needs; the message names the segment."""


class ToolDefinitionError(ContractError):
    """A function cannot be a tool; the message names the function and the parameter."""


class Stopped(BaseException):
    """A signal asked the command to end; what was done is kept. `where` says how far it had
    come."""

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(number)
        self.number = number
        self.where = where

    @property
    def code(self) -> int:
        """The exit code: 130 for Ctrl-C, 143 for SIGTERM, as shells report them."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped {self.where}".strip()


class RunWarning(UserWarning):
    """Said to whoever runs the command, without a line of code."""


class DataWarning(RunWarning):
    """A run goes on with data, or files of its own parts, that are not those that it was started
    with."""


class MemoryWarning(RunWarning):
    """An estimate exceeds the memory that is there."""


class CrowdedWarning(RunWarning):
    """An update has too few trees to keep all ranks busy."""


class DamagedWarning(RunWarning):
    """A run goes on from an older checkpoint, for the newest cannot be read."""


class UnscoredWarning(RunWarning):
    """More trajectories than expected could not be scored."""


class LostWarning(RunWarning):
    """A run goes on from its last checkpoint, for a rank of its learner was lost."""
