"""Images are what they say and stand alone, or they are refused: real files by qemu-img, and forged headers."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nubila.core.imagefile import PREFIX_BYTES, UnsafeImage, inspect

MIB = 1024 * 1024
QEMU_IMG = shutil.which("qemu-img")
needs_qemu_img = pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed")


def make(path: Path, kind: str, *options: str, size: int = 8 * MIB) -> Path:
    assert QEMU_IMG is not None
    subprocess.run(
        [QEMU_IMG, "create", "-q", "-f", kind, *options, str(path), str(size)],
        check=True,
        timeout=30,
        capture_output=True,
    )
    return path


def qcow2(
    *, version: int = 3, backing: int = 0, features: int = 0, extension: int = 0, crypt: int = 0, size: int = 8 * MIB
) -> bytes:
    head = struct.pack(">4sIQIIQI", b"QFI\xfb", version, backing, 9 if backing else 0, 16, size, crypt)
    head += b"\0" * (72 - len(head))
    head += struct.pack(">QQQII", features, 0, 0, 4, 104)
    if extension:
        head += struct.pack(">II8s", extension, 8, b"/etc/pwd")
    return head.ljust(4096, b"\0")


@needs_qemu_img
@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        ("raw", [], "raw"),
        ("qcow2", [], "qcow2"),
        ("qcow2", ["-o", "compat=0.10"], "qcow2"),
        ("qcow2", ["-o", "compression_type=zstd,extended_l2=on"], "qcow2"),
        ("vmdk", [], "vmdk"),
        ("vmdk", ["-o", "subformat=streamOptimized"], "vmdk"),
        ("vdi", [], "vdi"),
        ("vpc", ["-o", "subformat=dynamic,force_size"], "vhd"),
        ("vpc", ["-o", "subformat=fixed,force_size"], "vhd"),
        ("vhdx", [], "vhdx"),
    ],
)
def test_real_images_are_recognised(tmp_path: Path, kind: str, options: list[str], name: str) -> None:
    facts = inspect(make(tmp_path / "image", kind, *options), name)
    assert (facts.format, facts.virtual_size_bytes) == (name, 8 * MIB)


@needs_qemu_img
def test_first_bytes_are_enough(tmp_path: Path) -> None:
    for kind, name in (("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vdi", "vdi"), ("raw", "raw")):
        path = make(tmp_path / kind, kind)
        facts = inspect(path.read_bytes()[:PREFIX_BYTES], name, file_size_bytes=path.stat().st_size)
        assert facts == inspect(path, name)


@needs_qemu_img
def test_files_that_lean_on_others_are_refused(tmp_path: Path) -> None:
    base = make(tmp_path / "base", "qcow2")
    leaning = make(tmp_path / "leaning", "qcow2", "-b", str(base), "-F", "qcow2")
    with pytest.raises(UnsafeImage, match="backing file"):
        inspect(leaning, "qcow2")
    outside = make(tmp_path / "outside", "qcow2", "-o", f"data_file={tmp_path}/data,data_file_raw=on")
    with pytest.raises(UnsafeImage, match="external data file"):
        inspect(outside, "qcow2")
    with pytest.raises(UnsafeImage, match=r"descriptor|type|extents"):
        inspect(make(tmp_path / "flat", "vmdk", "-o", "subformat=monolithicFlat"), "vmdk")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (qcow2(backing=512), "backing file"),
        (qcow2(version=2, backing=512), "backing file"),
        (qcow2(features=0b100), "external data file"),
        (qcow2(extension=0x44415441), "external data file"),
        (qcow2(features=1 << 40), "features this host does not know"),
        (qcow2(features=0b10), "corrupt"),
        (qcow2(version=9), "qcow9"),
        (qcow2(crypt=1), "encrypted"),
        (qcow2()[:60], "cut off"),
        (b"QED\0".ljust(4096, b"\0"), "QED"),
        (b"LUKS\xba\xbe".ljust(4096, b"\0"), "LUKS"),
    ],
)
def test_forged_headers_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(UnsafeImage, match=words):
        inspect(data)


@pytest.mark.parametrize("declared", ["raw", "vmdk", "iso", "ari", "vhd"])
def test_a_qcow2_may_not_call_itself_something_else(declared: str) -> None:
    with pytest.raises(UnsafeImage, match=f"declared as {declared}, but the file is qcow2; correct its disk_format"):
        inspect(qcow2(), declared)


def test_plain_bytes_are_raw_and_nothing_else() -> None:
    assert inspect(b"\0" * 4096, "raw").virtual_size_bytes == 4096
    assert inspect(b"\0" * 4096, "aki").format == "raw"
    assert inspect(b"", "raw").virtual_size_bytes == 0
    with pytest.raises(UnsafeImage, match="no mark of any known format"):
        inspect(b"\0" * 4096, "qcow2")


def test_two_formats_at_once_are_refused() -> None:
    both = bytearray(qcow2().ljust(40000, b"\0"))
    both[32769:32774] = b"CD001"
    with pytest.raises(UnsafeImage, match="qcow2 and iso"):
        inspect(bytes(both), "qcow2")


@given(st.sampled_from([b"", b"QFI\xfb", b"KDMV", b"conectix", b"vhdxfile", b"COWD"]), st.binary(max_size=2048))
def test_any_bytes_get_facts_or_one_sentence(magic: bytes, rest: bytes) -> None:
    try:
        size = inspect(magic + rest).file_size_bytes
    except UnsafeImage:
        return
    assert size == len(magic + rest)
