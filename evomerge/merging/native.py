"""The sum of bfloat16 tensors in one pass, where the machine has a C compiler."""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from evomerge.checkpoints.digests import cache_folder

# Addresses of the target, the base, the array of bases (0: none) and the fp32 coefficients; then
# how many bases and how many elements. Releases the interpreter while it runs.
NativeMix = Callable[[int, int, int, int, int, int], None]

_FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-shared", "-fPIC")
_SECONDS = 60.0


@functools.cache
def native_mix() -> NativeMix | None:
    """The compiled `mix_bf16`, or None: torch's operations then do the same, more slowly.

    Compiled once per kind of machine into the cache folder, in about a second, unless
    `EVOMERGE_NATIVE` is 0. Nothing here can fail a run, and the bytes are the same either way.
    """
    compiler = shutil.which("cc")
    if os.environ.get("EVOMERGE_NATIVE") == "0" or compiler is None or sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None
    mix: NativeMix = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, *[ctypes.c_size_t] * 2)(
        ("mix_bf16", library)
    )
    return mix


def _compiled(compiler: str) -> Path:
    source = Path(__file__).with_name("mix.c")
    identity = source.read_bytes() + " ".join((*_FLAGS, os.uname().machine)).encode()
    folder = cache_folder() / "native"
    library = folder / f"mix-{hashlib.sha256(identity).hexdigest()[:16]}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / library.name
            subprocess.run(
                [compiler, *_FLAGS, "-o", str(made), str(source), "-lm"],
                check=True,
                capture_output=True,
                timeout=_SECONDS,
            )
            made.replace(library)
    return library
