"""Files that are there whole or not at all, and where ganzoo keeps what it can make again."""

import errno
import os
from pathlib import Path


def cache_folder(*parts):
    """A folder for packed data sets and statistics, made when it is not there: below `$GANZOO_CACHE`, which is
    `~/.cache/ganzoo` unless set."""
    base = os.environ.get("GANZOO_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ganzoo")
    folder = Path(base, *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sweep(folder):
    """Remove what calls of `write_atomically` that were killed have left in a folder and those below it."""
    for path in Path(folder).rglob(".*.*"):
        if path.suffix[1:].isdecimal():
            path.unlink(missing_ok=True)


def write_atomically(path, content):
    """Put the bytes `content` at `path`, all or nothing, also through a power cut."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
