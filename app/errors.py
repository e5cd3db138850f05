"""The exception tree. Every message names the thing that is wrong and the way out."""


class MembankError(Exception):
    """Anything a user can cause or mend. The command prints it as one line and exits with 1."""

    exit_code = 1
    retry_after: float | None = None
    """Seconds after which the same may succeed, where that is known."""


class UsageError(MembankError):
    """The command was called with values that can never work (exit code 2)."""

    exit_code = 2


class TooLargeError(UsageError):
    """A request with more bytes than are taken."""


class FilterError(UsageError):
    """A condition on metadata that cannot be understood, or on a field that no document has."""


class NotFoundError(MembankError):
    """A tenant, principal, bank or document that is not there, or not for the one who asks."""


class ModelNotFoundError(NotFoundError):
    """A bank or an adapter, named as a model, that is not there, or not for the one who asks."""


class UnauthorizedError(MembankError):
    """A key or token that is missing, wrong, expired or revoked: nobody knows who asks."""


class ForbiddenError(MembankError):
    """Who asks is known, and may not do this."""


class ConflictError(MembankError):
    """Something of that name exists already."""


class QuotaError(MembankError):
    """A tenant holds, or has asked today, as much as its quota lets it."""


class BusyError(MembankError):
    """More is asked at once than can be answered soon."""

    retry_after = 1.0


class LateError(MembankError):
    """What was asked for took longer than a request may."""


class VaultError(MembankError):
    """A memory that does not open: no key, a wrong one, or another row than it was sealed for."""


class UnavailableError(MembankError):
    """A server that is needed does not answer: Postgres, Valkey."""

    retry_after = 1.0


class IngestError(MembankError):
    """A file or a line that cannot be read as a document."""


class ModelError(MembankError):
    """A model that cannot be found, loaded or supported."""


class ProfileError(MembankError):
    """A bank and a reader whose encoder profiles differ."""


class TrainingError(MembankError):
    """Data that cannot be trained on, a run that cannot go on, a result that cannot be kept."""


class AdapterError(MembankError):
    """A reader adapter that is damaged, or was trained for another model or prompt."""


class BlobError(MembankError):
    """A KV blob that is damaged, truncated, foreign or of an unknown version."""


class EvaluationError(MembankError):
    """A question file that cannot be read, or results that do not belong together."""
