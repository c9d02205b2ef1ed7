"""The exceptions of the package. Their texts are for people and may change."""


class Error(Exception):
    """The base of all exceptions of this package. Its text names the object and the way out."""


class ConfigError(Error, ValueError):
    """An argument or a parameter of the connection string cannot be understood. The text never contains its value."""


class Closed(Error):
    """The cache is closed. Views and snapshots that were taken before stay readable."""


class NotReady(Error, TimeoutError):
    """The cache was not warm in time. The text says what it waits for."""


class TooStale(Error):
    """The latest view is older than the caller accepts."""

    def __init__(self, text: str, age: float, max_age: float, status: str) -> None:
        super().__init__(text, age, max_age, status)
        self.age = age
        """The age of the latest view, in seconds; infinite before the first warmup."""
        self.max_age = max_age
        """The age that the caller accepts, in seconds."""
        self.status = status
        """What the cache is doing, in words."""

    def __str__(self) -> str:
        return str(self.args[0])


class NotShown(Error, TimeoutError):
    """The view did not contain the transaction in time."""

    def __init__(self, text: str, xid: int) -> None:
        super().__init__(text, xid)
        self.xid = xid
        """The transaction."""

    def __str__(self) -> str:
        return str(self.args[0])


class Lagged(Error):
    """Changes were dropped because they were not taken in time. Take a new view and treat every event as changed."""

    def __init__(self, text: str, missed: int) -> None:
        super().__init__(text, missed)
        self.missed = missed
        """How many changes were dropped."""

    def __str__(self) -> str:
        return str(self.args[0])
