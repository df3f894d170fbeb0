"""A file whose bytes the disk does not give: laid over another by FUSE, so that the kernel itself answers EIO.

`bad_sectors(file, first)`, or `python bad_sectors.py FILE FIRST`, which says `mounted` and lasts until its input ends:
what comes before byte `first` can be read. FUSE's protocol is spoken here as the kernel's <linux/fuse.h> has it: there
is one file and nothing is written, so that no library is needed, only root and /dev/fuse.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Operations and structures of <linux/fuse.h>, protocol 7.31. The file is the root of its own file system.
FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, INTERRUPT, DESTROY, FORGET_SEVERAL = (
    2,
    3,
    14,
    15,
    18,
    25,
    26,
    36,
    38,
    42,
)
SILENT = (FORGET, FORGET_SEVERAL, INTERRUPT)
HEADER, ANSWER = struct.Struct("=IIQQIIIHH"), struct.Struct("=IiQ")
OPENED, STARTED = struct.Struct("=QII"), struct.Struct("=IIIIHHIIHHI28x")
ATTRIBUTES = struct.Struct("=QII6Q10I")
MOST, PAGE = 1 << 17, 4096
MNT_DETACH = 2


@contextmanager
def bad_sectors(file: Path, first: int = 0) -> Iterator[None]:
    """In a process of its own: whoever reads the file must not be the one who answers."""
    server = subprocess.Popen(
        [sys.executable, __file__, str(file), str(first)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        if server.stdout.readline() != "mounted\n":
            raise OSError("a file cannot be mounted here")
        yield
    finally:
        server.stdin.close()
        server.wait()
        server.stdout.close()


def why_no_bad_sectors(folder: Path) -> str | None:
    """Why they cannot be had here; None where they can."""
    if os.geteuid() or not Path("/dev/fuse").exists():
        return "bad sectors need root and /dev/fuse"
    (folder / "trial").write_bytes(b"can be read")
    try:
        with bad_sectors(folder / "trial"):
            return None
    except OSError:
        return "this root may not mount"


def attributes(descriptor: int) -> bytes:
    of = os.fstat(descriptor)
    times = [divmod(time, 10**9) for time in (of.st_atime_ns, of.st_mtime_ns, of.st_ctime_ns)]
    seconds, rest = zip(*times, strict=True)
    owner = (of.st_mode, 1, of.st_uid, of.st_gid, 0, PAGE, 0)
    return ATTRIBUTES.pack(3600, 0, 0, 1, of.st_size, of.st_blocks, *seconds, *rest, *owner)


def answer(descriptor: int, first: int, operation: int, body: bytes) -> tuple[int, bytes]:
    """(error, content)"""
    if operation == INIT:
        return 0, STARTED.pack(7, 31, 0, 0, 1, 1, PAGE, 1, 1, 0, 0)
    if operation == GETATTR:
        return 0, attributes(descriptor)
    if operation == OPEN:
        return 0, OPENED.pack(0, 0, 0)
    if operation == READ:
        _, start, size = struct.unpack_from("=QQI", body)
        return (errno.EIO, b"") if start + size > first else (0, os.pread(descriptor, size, start))
    return (0, b"") if operation in (RELEASE, FLUSH, DESTROY) else (errno.ENOSYS, b"")


def serve(channel: int, descriptor: int, first: int) -> None:
    """Until the file system is unmounted."""
    while True:
        try:
            request = os.read(channel, MOST + PAGE)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            raise
        _, operation, unique, *_ = HEADER.unpack_from(request)
        if operation not in SILENT:
            failed, content = answer(descriptor, first, operation, request[HEADER.size :])
            with suppress(FileNotFoundError):  # whoever asked has been killed
                os.write(channel, ANSWER.pack(ANSWER.size + len(content), -failed, unique) + content)


def main(file: Path, first: int) -> None:
    libc, path = ctypes.CDLL(None, use_errno=True), os.fsencode(file)
    descriptor, channel = os.open(file, os.O_RDONLY), os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={channel},rootmode=100644,user_id=0,group_id=0,allow_other,max_read={PAGE}".encode()
    if libc.mount(b"robuq-faults", path, b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), f"cannot mount: {os.strerror(ctypes.get_errno())}")
    server = threading.Thread(target=serve, args=(channel, descriptor, first))
    server.start()
    print("mounted", flush=True)
    sys.stdin.read()
    libc.umount2(path, MNT_DETACH)
    server.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
