"""Read the small files that variables name, and report what is wrong with a variable."""

from __future__ import annotations

__all__ = ["BadSetting", "read_file"]

import os
import stat
from pathlib import Path


class BadSetting(Exception):
    """A variable has a value that cannot be used; the text is one line that names the variable."""

    code = "bad_setting"

    def __init__(self, variable: str, detail: str) -> None:
        self.variable = variable
        self.detail = detail
        super().__init__(f"{variable}: {detail}")


MOUNTED_SECRETS = "/run/secrets/"
"""Where container engines mount secrets, with modes of their own; no user but the container's own reaches them."""


def read_file(variable: str, path: str, bytes_max: int, *, is_secret: bool = True) -> bytes:
    """
    Read a small file. The error leaves out the path: where NAME and NAME_FILE are mixed up, the path is the secret.

    Raises:
        BadSetting: It cannot be read, is too large, or *is_secret* and every user of the machine may read it.
    """
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(bytes_max + 1)
    except (OSError, ValueError) as error:
        raise BadSetting(
            variable, f"the file cannot be read: {getattr(error, 'strerror', None) or 'no such name is possible'}"
        ) from None
    if is_secret and stat.S_ISREG(mode) and mode & stat.S_IROTH and not path.startswith(MOUNTED_SECRETS):
        raise BadSetting(variable, "every user of this machine can read the file; take that right away (chmod 600)")
    if len(content) > bytes_max:
        raise BadSetting(variable, f"the file is larger than {bytes_max} bytes")
    return content
