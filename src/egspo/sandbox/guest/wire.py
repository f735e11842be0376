"""Frames of JSON between the two processes of a run."""

import json
import os

LARGEST_FRAME = 1 << 24
"""Bytes of the longest message that is read: what a program returns is bounded by it."""


class WireError(Exception):
    """The other side sent what is no message, or a message that is too long."""


class Ended(Exception):
    """The other side is gone."""


class Wire:
    """Frames (8 bytes of length, then JSON) over two descriptors."""

    def __init__(self, reading: int, writing: int):
        self.reading, self.writing = reading, writing

    def send(self, message: object) -> None:
        data = json.dumps(message, separators=(",", ":"), check_circular=False).encode("ascii")
        view = memoryview(len(data).to_bytes(8, "big") + data)
        try:
            while view:
                view = view[os.write(self.writing, view) :]
        except OSError as error:
            raise Ended from error

    def receive(self, largest: int = LARGEST_FRAME) -> object:
        length = int.from_bytes(self._read(8), "big")
        if length > largest:
            raise WireError(f"a message of {length} bytes")
        data = self._read(length)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise WireError("no message") from error

    def _read(self, length: int) -> bytes:
        parts, missing = [], length
        while missing:
            try:
                part = os.read(self.reading, min(missing, 1 << 20))
            except OSError as error:
                raise Ended from error
            if not part:
                raise Ended
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)
