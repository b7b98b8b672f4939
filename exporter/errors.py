"""What skep raises for a user's mistake, a refusal by the kernel, or damaged input.

::

    SkepError
    ├── ConfigError     YAML, flags: has file, line and column
    ├── ImageError      references, registries, digests, the store
    ├── ObjectError     ELF and BTF bytes
    ├── PlanError       what an object and its metadata ask to be measured
    ├── KernelError     load, attach, read; carries the verifier's log
    ├── ExportError     listening, posting
    └── Problems        several of the above, reported at once

A message is one line: subject, what was found, what was expected, what to do;
lower case, no full stop, values shown with ``!r``. Anything else that escapes is
a bug of ours and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class SkepError(Exception):
    """Something outside skep is wrong, and the message says what to do about it.

    Args:
        message: One line, see the module's preface.
        code: Stable machine-readable cause such as ``img.blob_digest``; it
            becomes a metric attribute, so there are few and they do not change.
    """

    def __init__(self, message: str, *, code: str = "error") -> None:
        super().__init__(message)
        self.code = code


class ConfigError(SkepError):
    """A configuration file or flag says something it may not say."""

    def __init__(self, message: str, *, file: str = "", line: int = 0, column: int = 0) -> None:
        where = f"{file}:{line}:{column}: " if file and line else f"{file}: " if file else ""
        super().__init__(where + message, code="config")
        self.file, self.line, self.column = file, line, column


class ImageError(SkepError):
    """A reference, a registry, a manifest or a stored blob is not as it must be."""


class ObjectError(SkepError):
    """The bytes are not a BPF object that we, and libbpf, can read."""


class PlanError(SkepError):
    """The object, its metadata and the configuration do not make one plan."""


class KernelError(SkepError):
    """The kernel refused, and here is why.

    Attributes:
        log: The verifier's or libbpf's last lines, newest last; may be empty.
    """

    def __init__(self, message: str, *, code: str = "kernel", log: str = "") -> None:
        super().__init__(message, code=code)
        self.log = log


class ExportError(SkepError):
    """An address cannot be listened on, or a receiver said no."""


class Problems(SkepError):  # noqa: N818 - several errors, named for what they are
    """All that is wrong with one subject, in the order a reader meets it.

    ``str()`` gives one line per problem.
    """

    def __init__(self, problems: Sequence[SkepError]) -> None:
        if not problems:
            raise ValueError("Problems needs at least one problem")
        super().__init__("\n".join(str(problem) for problem in problems), code=problems[0].code)
        self.problems = tuple(problems)


def raise_all(problems: Sequence[SkepError]) -> None:
    """Raise nothing, the one problem, or all of them as :class:`Problems`."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)
