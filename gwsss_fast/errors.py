"""The one exception that stands for a mistake its user can mend."""


class GwsssError(ValueError):
    """Bad input. The message is one sentence that names the file, line or argument and says what to do.

    Commands print it without a traceback and exit with status 2.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM has come, as from a batch system whose time is up."""
