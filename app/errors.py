"""The exception tree. Every message names what is wrong and the way out."""


class MembankError(Exception):
    """Anything that a user can cause or fix. The command prints it as one line and exits with 1."""

    exit_code = 1
    retry_after: float | None = None
    """Seconds after which a retry may succeed, if known."""


class UsageError(MembankError):
    """The command was called with values that can never work (exit code 2)."""

    exit_code = 2


class TooLargeError(UsageError):
    """A request that has more bytes than are accepted."""


class FilterError(UsageError):
    """A metadata filter that cannot be parsed, or names a field that no document has."""


class NotFoundError(MembankError):
    """A tenant, principal, bank or document that does not exist, or that the asker may not see."""


class ModelNotFoundError(NotFoundError):
    """A bank or adapter, named as a model, that does not exist, or that the asker may not see."""


class UnauthorizedError(MembankError):
    """A key or token that is missing, wrong, expired or revoked, so the asker is unknown."""


class ForbiddenError(MembankError):
    """The asker is known, but may not do this."""


class ConflictError(MembankError):
    """Something with that name already exists, or was changed at the same time."""


class QuotaError(MembankError):
    """A tenant holds, or has used today, as much as its quota allows."""


class BusyError(MembankError):
    """More requests at once than can be answered soon."""

    retry_after = 1.0


class LateError(MembankError):
    """A request that took longer than it may."""


class VaultError(MembankError):
    """A memory that does not open: the key is missing or wrong, or it belongs to another row."""


class UnavailableError(MembankError):
    """A server that is needed, such as Postgres or Valkey, does not answer."""

    retry_after = 1.0


class IngestError(MembankError):
    """A file or a line that cannot be read as a document."""


class ModelError(MembankError):
    """A model that cannot be found or loaded, or is not supported."""


class ProfileError(MembankError):
    """A bank and a reader whose encoder profiles differ."""


class TrainingError(MembankError):
    """Data that cannot be trained on, a run that cannot go on, or a result that cannot be saved."""


class AdapterError(MembankError):
    """A reader adapter that is damaged, or was trained for another model or prompt."""


class BlobError(MembankError):
    """A KV blob that is damaged, truncated, foreign or of an unknown version."""


class EvaluationError(MembankError):
    """A question file that cannot be read, or results that do not belong together."""
