"""Read the small files that variables name, and report what is wrong with a variable."""

from __future__ import annotations

__all__ = ["BadSetting", "read_file"]

from pathlib import Path


class BadSetting(Exception):
    """A variable has a value that cannot be used; the text is one line that names the variable."""

    code = "bad_setting"

    def __init__(self, variable: str, detail: str) -> None:
        self.variable = variable
        self.detail = detail
        super().__init__(f"{variable}: {detail}")


def read_file(variable: str, path: str, bytes_max: int) -> bytes:
    """Read a small file. The error leaves out the path: where NAME and NAME_FILE are mixed up, the path is the secret."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(bytes_max + 1)
    except (OSError, ValueError) as error:
        raise BadSetting(
            variable, f"the file cannot be read: {getattr(error, 'strerror', None) or 'no such name is possible'}"
        ) from None
    if len(content) > bytes_max:
        raise BadSetting(variable, f"the file is larger than {bytes_max} bytes")
    return content
