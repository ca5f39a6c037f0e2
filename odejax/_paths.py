"""Every path that a user gives goes through here, before any work is spent."""

import contextlib
import errno
import os
import tempfile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: no locks there
    fcntl = None


def local_path(name: str, path: str | os.PathLike) -> Path:
    """An absolute path, `~` expanded; `ValueError` for one that is not of this machine's disks."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"{name} must be a path; got {path!r}")
    text = os.fspath(path)
    if "://" in text:
        raise ValueError(f"{name} must be a local path; got {text}")
    return Path(text).expanduser().absolute()


def writable_file(name: str, path: str | os.PathLike) -> Path:
    """The same, of a file that can be written; its folder is made. `ValueError` if it cannot."""
    file = local_path(name, path)
    if file.is_dir():
        raise ValueError(f"{name} must be a file; {file} is a folder")
    writable_folder(name, file.parent)
    return file


def writable_folder(name: str, path: str | os.PathLike) -> Path:
    """The same, of a folder, which is made if it is not there."""
    folder = local_path(name, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Written to, since a disk may be full or read only whatever the rights are.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0")
    except OSError as error:
        raise ValueError(f"{name}: {folder} cannot be written to ({error.strerror})") from None
    return folder


def reserve_room(folder: Path, size: int):
    """Raise `OSError` where the disk, or the user's share of it, has no room for `size` bytes.

    They are reserved for a moment, since the free space of a disk does not count shares.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except AttributeError:  # macOS and Windows have none
            pass
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # others say that there is a limit for one file, or no such call


@contextlib.contextmanager
def written_whole(file: Path):
    """A path to write to; it takes the place of `file` once it is complete; else it is removed."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, file)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(file)  # a full disk does not name the file
        raise


_LOCKS: dict[Path, int] = {}  # for the life of this process, which may open a folder again


def lock_folder(name: str, folder: Path):
    """Keep other processes out of the folder; `ValueError` where one is at work in it already."""
    if folder in _LOCKS or fcntl is None:
        return
    lock = os.open(folder, os.O_RDONLY)  # the folder itself, so that no file is added to it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ValueError(
            f"{name}: another process is at work in {folder}; wait for it, or choose another"
        ) from None
    except OSError:  # a disk without locks
        os.close(lock)
        return
    _LOCKS[folder] = lock
