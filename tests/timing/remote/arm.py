"""A Debian of 64-bit ARM, emulated on this machine: `python arm.py FOLDER` makes it once and prints its Python.

qemu-user runs its programs; packages and wheels come from where apt and pip get theirs here, and nothing is installed.
"""

import os
import shutil
import sys
import zipfile
from pathlib import Path

from debian import native, once, run, unpack

PLACE = Path(os.environ.get("HTAS_ARM") or Path.home() / ".cache" / "htas-arm")
"""Where it is kept, some 250 MB."""
PACKAGES = ["python3-minimal", "libpython3-stdlib", "libstdc++6"]
WHEELS = ["numpy", "onnxruntime==1.23.2", "flatbuffers", "packaging", "protobuf"]
"""QEMU 7.2, that of Debian 12, crashes while it loads ONNX Runtime 1.32."""
EMULATOR = "qemu-aarch64-static"
MACHINE = "0123456789abcdef0123456789abcdef"
"""Its machine-id."""


def command(place: Path = PLACE) -> list[str]:
    """The words that start its Python; it is made where it is missing. Raises Missing."""
    root = place / "root"

    def make() -> None:
        _emulator(place)
        _system(place, root)
        _wheels(place, root)

    once(place, "an ARM system", make)
    emulator = shutil.which(EMULATOR) or str(place / "qemu/usr/bin" / EMULATOR)
    (interpreter,) = root.glob("usr/bin/python3.[0-9]*[0-9]")
    return ["env", f"PYTHONPATH={root}/site", "PYTHONNOUSERSITE=1", emulator, "-L", str(root), str(interpreter)]


def _emulator(place: Path) -> None:
    if shutil.which(EMULATOR):
        return
    unpack(place, native(), ["download", "qemu-user-static"], place / "qemu")
    for other in (place / "qemu/usr/bin").glob("qemu-*"):
        if other.name != EMULATOR:
            other.unlink()


def _system(place: Path, root: Path) -> None:
    """The packages with all that they need, unpacked and not set up."""
    unpack(place, "arm64", ["install", "--download-only", "--no-install-recommends", *PACKAGES], root)
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/machine-id").write_text(f"{MACHINE}\n")


def _wheels(place: Path, root: Path) -> None:
    (interpreter,) = root.glob("usr/bin/python3.[0-9]*[0-9]")
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)]
    run(
        sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms,
        "--platform=manylinux2014_aarch64", "--implementation=cp",
        f"--python-version={interpreter.name.removeprefix('python')}", "-d", str(place / "wheels"), *WHEELS,
    )  # fmt: skip
    for wheel in (place / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as content:
            content.extractall(root / "site")
    shutil.rmtree(place / "wheels")


if __name__ == "__main__":
    print(*command(Path(sys.argv[1]) if len(sys.argv) > 1 else PLACE))
