"""The errors of dvt_fast: each is one clear line that says what was expected, what came and what to do."""


class DvtError(Exception):
    """Base of every error that dvt_fast raises on purpose; the command line prints its message and exits with 1."""


class InputError(DvtError, ValueError):
    """An argument, image, file or option that cannot be used as it is."""


class OutputError(DvtError, OSError):
    """A file or folder that cannot be written: no permission, a full disk."""


class MissingExtraError(DvtError, ImportError):
    """An optional package is absent; the message names the extra that brings it."""


class WeightsError(DvtError, ValueError):
    """Weights that cannot be found, read or fitted to the model."""


class NonFiniteError(DvtError, ArithmeticError):
    """NaN or infinity where numbers were expected, in an input or in a loss."""


class Cancelled(DvtError):
    """A solve was stopped by its progress callback or by the user."""


class UnsupportedError(DvtError):
    """What this build or this machine does not have: a device, a driver, an instruction set."""


class OutOfMemoryError(DvtError, MemoryError):
    """Not enough memory, of the machine or of a device; the message says how much was needed."""


class DeviceError(DvtError, RuntimeError):
    """A device failed in a way that this process cannot recover from: it must be restarted."""
