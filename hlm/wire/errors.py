"""What can be wrong with a message: one name for each, all of them :class:`WireError`."""


class WireError(ValueError):
    """A message that cannot be encoded, or bytes that are not a message of this protocol."""


class TruncatedMessage(WireError):
    """The bytes end before the message does."""


class TrailingData(WireError):
    """The bytes go on after the message has ended, or its last byte is not padded with zeros."""


class OversizedMessage(WireError):
    """The message, or something it announces, is larger than :class:`~hlm.wire.Limits` allows."""


class UnsupportedVersion(WireError):
    """The first byte names another message, a version or a coding that this code does not read."""


class InvalidField(WireError):
    """A field has a value outside its range, or one that contradicts another field."""
