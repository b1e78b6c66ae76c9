"""Every error that Forerun raises on purpose.

::

    ForerunError
    ├── ConfigError             (ValueError)    an option: unknown, out of range, or at odds with another
    ├── RequestError            (ValueError)    a prompt or the sampling parameters of one request
    │   └── DeadEndError                        its constraint leaves no token that may come next
    ├── ModelLoadError          (ValueError)    a model file: missing, corrupt, or of a kind that is not supported
    │   └── VocabMismatchError                  a draft whose tokens are not the target's
    ├── CheckpointError         (ValueError)    a training checkpoint: missing, corrupt, or of another run
    ├── CertificateError        (ValueError)    a certificate: corrupt, tampered with, or not for these data
    ├── CorpusError             (ValueError)    training text: missing, too small, in two splits, or not what was hashed
    ├── TrajectoryError         (ValueError)    recorded control data: shapes, gaps, values that are not numbers
    ├── ObjectiveError          (ValueError)    an objective of a planner: a shape or value that can't be ranked
    ├── TrainingError           (RuntimeError)  training can't go on: its files can't be written, a run failed
    │   ├── DivergenceError                     the loss or the gradient is infinite or not a number
    │   └── CollapseError                       the embeddings of a world model say less and less
    ├── DeviceError             (RuntimeError)  a device, or a process that shares a model with us, can't go on
    │   └── DeviceMemoryError                   a pass does not fit the device's memory; with fewer requests it may
    ├── DrafterError            (RuntimeError)  the drafter failed; decoding goes on without it, so users rarely see it
    ├── ServingError            (RuntimeError)  the server can't take or finish a request
    │   ├── EngineOverloadedError               as many completions wait as may wait
    │   ├── EngineStoppedError                  the engine drains, or has failed
    │   └── CompletionFailedError               a request was taken and could not be decoded to its end
    └── MissingDependencyError  (ImportError)   an optional package that this call needs is not installed

Catch :class:`ForerunError` for all of them, or the builtin for one kind. A message says what was wrong, the value got,
what is allowed and what to do. The command line prints it as one line and exits with status 2.
"""


class ForerunError(Exception):
    """Base of every error that Forerun raises on purpose."""


class ConfigError(ForerunError, ValueError):
    """An option is unknown, out of range, or contradicts another one."""


class RequestError(ForerunError, ValueError):
    """One request can't be served as asked: its prompt or its sampling parameters are at fault."""


class DeadEndError(RequestError):
    """A request can't go on: its constraint, with its other parameters, leaves no token that may come next.

    Args:
        message: What was wrong and what to do.
        num_output_tokens: Tokens of the output before the place.
    """

    def __init__(self, message: str, *, num_output_tokens: int = 0) -> None:
        super().__init__(message)
        self.num_output_tokens = num_output_tokens


class ModelLoadError(ForerunError, ValueError):
    """A model can't be loaded: a file is missing, corrupt, or of a kind that is not supported."""


class VocabMismatchError(ModelLoadError):
    """A draft model's vocabulary differs from the target's, so its tokens mean something else."""


class CheckpointError(ForerunError, ValueError):
    """A training checkpoint is missing, corrupt, or belongs to another run."""


class CertificateError(ForerunError, ValueError):
    """A certificate is corrupt, has been tampered with, or does not fit the data."""


class CorpusError(ForerunError, ValueError):
    """Training text is missing, too small, in two splits at once, or not what its manifest says."""


class TrajectoryError(ForerunError, ValueError):
    """Recorded states, actions or rewards are missing, don't fit together, or are not numbers."""


class ObjectiveError(ForerunError, ValueError):
    """The objective of a planner returned something that can't be ranked; the candidate is named."""


class TrainingError(ForerunError, RuntimeError):
    """Training can't go on: the loss is not a number, or its files can't be written."""


class DivergenceError(TrainingError):
    """A loss or gradient is infinite or not a number: these settings do not train."""


class CollapseError(TrainingError):
    """The embeddings of a world model shrink to a point or to a few directions: they no longer tell frames apart."""


class DeviceError(ForerunError, RuntimeError):
    """A device can't go on, or a process that shares the model is gone."""


class DeviceMemoryError(DeviceError):
    """A pass does not fit into a device's memory; the engine tries with fewer requests, so users see it of one only."""


class DrafterError(ForerunError, RuntimeError):
    """The drafter died, hangs, or answered with something that is no draft."""


class ServingError(ForerunError, RuntimeError):
    """The server can't take a request, or can't finish it."""


class EngineOverloadedError(ServingError):
    """As many completions wait as may wait."""


class EngineStoppedError(ServingError):
    """The engine takes no more requests: it drains, or has failed."""


class CompletionFailedError(ServingError):
    """A request was taken and could not be decoded to its end."""


class MissingDependencyError(ForerunError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""
