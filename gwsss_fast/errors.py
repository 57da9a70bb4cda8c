"""The one exception that stands for a mistake its user can mend."""


class GwsssError(ValueError):
    """Bad input. The message is one sentence that names the file, line or argument and says what to do.

    Commands print it without a traceback and exit with status 2.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM has come, as from a batch system whose time is up."""


def first_line(error: Exception | str) -> str:
    """What another library says, as a part of one line: its first line, else the error's kind, cut at 300 letters."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:300]
