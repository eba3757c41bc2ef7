"""The errors a user can meet, each carrying one plain sentence."""


class FoundationRegError(Exception):
    """Something the user can act on. ``str(error)`` is one plain sentence that says what is wrong and what to do."""

    exit_code = 1


class InputError(FoundationRegError):
    """An input (file, node, setting) cannot be used. Raised before any long work starts."""

    exit_code = 2


class Forgotten(FoundationRegError):
    """What an earlier registration left in memory is asked for, but another one has taken its place."""

    exit_code = 2


class OutOfMemory(FoundationRegError):
    """The device ran out of memory even after backing off; the sentence says what to reduce."""

    exit_code = 2


class WeightsError(FoundationRegError):
    """An encoder's weights are missing, damaged or not the published ones."""

    exit_code = 2


class Cancelled(FoundationRegError):
    """The user stopped the work. Nothing was written."""

    exit_code = 130
