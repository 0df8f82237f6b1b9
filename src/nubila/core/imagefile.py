"""What a disk image file really is, read from its headers alone.

Image formats can name other files of the host (a qcow2 backing or data file, VMDK extents, a VHD parent): opened
blindly, an uploaded image reads any file of the hypervisor host into the guest (CVE-2015-5163, CVE-2022-47951,
CVE-2024-32498). So nothing that a user uploaded reaches an image tool before ``inspect`` has said that the file is
self-contained and of the format declared for it. Nothing here runs a tool or follows a reference.

Sources: QEMU docs/interop/qcow2.txt, VMware Virtual Disk Format 1.1, Microsoft VHD 1.0 and [MS-VHDX], ECMA-119.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

PREFIX_BYTES = 128 * 1024
"""How many first bytes are enough for every answer but a fixed VHD's (its mark is at the end) and a VHDX's size."""

SECTOR = 512
_PLAIN = frozenset({"raw", "ami", "aki", "ari", "ploop"})  # formats without a mark of their own: plain bytes
_QCOW2_KNOWN_INCOMPATIBLE = 0b11011  # dirty, corrupt, compression type, extended L2; bit 2 is an external data file


class UnsafeImage(Exception):
    """The image must not be used; the text is one sentence for the user."""


class ImageFacts(Struct, frozen=True, kw_only=True):
    """What inspection found."""

    format: str  # raw qcow2 vmdk vdi vhd vhdx iso qed luks
    virtual_size_bytes: int  # what a guest sees; 0 when the bytes at hand do not say
    file_size_bytes: int


class _Source:
    """Random reads over a file or over the first bytes of one; short reads at the end are normal."""

    def __init__(self, read: Callable[[int, int], bytes], size: int, whole: bool) -> None:
        self.read, self.size, self.whole = read, size, whole

    def number(self, offset: int, code: str) -> int:
        """One unsigned number, e.g. ">Q"; a file that ends before it is refused."""
        data = self.read(offset, struct.calcsize(code))
        if len(data) < struct.calcsize(code):
            raise UnsafeImage("The image file is cut off inside its header.")
        return int(struct.unpack(code, data)[0])


def inspect(
    source: Path | bytes, declared_format: str | None = None, *, file_size_bytes: int | None = None
) -> ImageFacts:
    """Say what an image is, or refuse it.

    ``source`` is the file or its first bytes (``PREFIX_BYTES`` are enough); with bytes, ``file_size_bytes`` says how
    long the whole file is. ``declared_format`` is the image's ``disk_format``; None accepts any.
    Raises UnsafeImage for a file that refers to other files, has an unknown incompatible feature, is damaged,
    encrypted or ambiguous, or is not of the declared format. OSError when the file cannot be read.
    """
    if isinstance(source, bytes):
        size = len(source) if file_size_bytes is None else file_size_bytes
        return _inspect(_Source(lambda at, n: source[at : at + n], size, len(source) >= size), declared_format)
    handle = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        return _inspect(_Source(lambda at, n: os.pread(handle, n, at), size, True), declared_format)
    finally:
        os.close(handle)


def _inspect(source: _Source, declared: str | None) -> ImageFacts:
    found = _marks(source)
    if len(found) > 1:
        raise UnsafeImage(f"The image file looks like {' and '.join(found)} at the same time.")
    name = found[0] if found else "raw"
    if declared is not None and name != declared and not (name == "raw" and declared in _PLAIN):
        seen = "has no mark of any known format" if name == "raw" else f"is {name}"
        raise UnsafeImage(f"The image is declared as {declared}, but the file {seen}; correct its disk_format.")
    virtual = _READERS[name](source) if name in _READERS else source.size
    return ImageFacts(format=name, virtual_size_bytes=virtual, file_size_bytes=source.size)


def _marks(source: _Source) -> list[str]:
    """Every format whose mark the file carries; none means plain bytes."""
    head = source.read(0, SECTOR)
    found = [name for name, magic in _MAGIC if head.startswith(magic)]
    if head[64:68] == b"\x7f\x10\xda\xbe":
        found.append("vdi")
    if source.read(32769, 5) == b"CD001":
        found.append("iso")
    if "vhd" not in found and source.whole and source.size > SECTOR:
        footer = source.read(source.size - SECTOR, SECTOR)
        if footer.startswith(b"conectix") and found in ([], ["iso"]):
            found.append("vhd")
    return found


_MAGIC = (
    ("qcow2", b"QFI\xfb"),
    ("vmdk", b"KDMV"),
    ("vmdk", b"COWD"),
    ("vmdk", b"# Disk DescriptorFile"),
    ("vhd", b"conectix"),
    ("vhdx", b"vhdxfile"),
    ("qed", b"QED\x00"),
    ("luks", b"LUKS\xba\xbe"),
)


def _qcow2(source: _Source) -> int:
    version = source.number(4, ">I")
    if version not in (2, 3):
        raise UnsafeImage(f"The image is qcow{version}, only qcow2 (versions 2 and 3) is supported.")
    if source.number(8, ">Q") or source.number(16, ">I"):
        raise UnsafeImage("The qcow2 image has a backing file; flatten it with 'qemu-img convert -O qcow2' first.")
    if not 9 <= source.number(20, ">I") <= 21:
        raise UnsafeImage("The qcow2 image has an impossible cluster size.")
    if source.number(32, ">I"):
        raise UnsafeImage("The qcow2 image is encrypted.")
    header_bytes = 72
    if version == 3:
        features = source.number(72, ">Q")
        if features & 0b100:
            raise UnsafeImage("The qcow2 image has an external data file; flatten it with 'qemu-img convert' first.")
        if features & 0b10:
            raise UnsafeImage("The qcow2 image is marked corrupt; repair it with 'qemu-img check -r all' first.")
        if features & ~_QCOW2_KNOWN_INCOMPATIBLE:
            raise UnsafeImage(f"The qcow2 image needs features this host does not know (bits {features:#x}).")
        header_bytes = source.number(100, ">I")
        if not 104 <= header_bytes <= 4096 or header_bytes % 8:
            raise UnsafeImage("The qcow2 image has an impossible header length.")
    _qcow2_extensions(source, header_bytes)
    return source.number(24, ">Q")


def _qcow2_extensions(source: _Source, at: int) -> None:
    """Walk the header extensions; one that names a data file is refused even where the feature bit lies."""
    for _ in range(64):
        head = source.read(at, 8)
        kind, length = struct.unpack(">II", head) if len(head) == 8 else (0, 0)
        if kind == 0:
            return
        if kind == 0x44415441:
            raise UnsafeImage("The qcow2 image names an external data file; flatten it with 'qemu-img convert' first.")
        at += 8 + (length + 7) // 8 * 8
    raise UnsafeImage("The qcow2 image has more header extensions than any tool writes.")


def _vmdk(source: _Source) -> int:
    if source.read(0, 4) != b"KDMV":
        raise UnsafeImage("The VMDK image is only a descriptor or of a split kind; use monolithicSparse.")
    capacity = source.number(12, "<Q") * SECTOR
    at, sectors = source.number(28, "<Q"), source.number(36, "<Q")
    if not at or not 0 < sectors <= 128:
        raise UnsafeImage("The VMDK image has no embedded descriptor.")
    text = source.read(at * SECTOR, sectors * SECTOR).split(b"\0")[0].decode("latin-1")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith(("RW", "RDONLY")))
    fields = {name.strip().lower(): value.strip().strip('"') for name, value in values.items()}
    kind = fields.get("createtype", "")
    if kind not in ("monolithicSparse", "streamOptimized"):
        raise UnsafeImage(f"The VMDK image is of type {kind or 'unknown'}; use monolithicSparse or streamOptimized.")
    if fields.get("parentcid", "ffffffff").lower() != "ffffffff" or "parentfilenamehint" in fields:
        raise UnsafeImage("The VMDK image has a parent; flatten it first.")
    extents = [line.split(None, 3) for line in lines if line.split(None, 1)[0] in ("RW", "RDONLY", "NOACCESS")]
    if len(extents) != 1 or len(extents[0]) < 4 or extents[0][2] != "SPARSE" or "/" in extents[0][3]:
        raise UnsafeImage("The VMDK image names other files as its extents; use monolithicSparse.")
    return capacity


def _vdi(source: _Source) -> int:
    if source.number(0x4C, "<I") not in (1, 2) or source.read(0x1A8, 16).strip(b"\0"):
        raise UnsafeImage("The VDI image has a parent; clone it into a full image first.")
    return source.number(0x170, "<Q")


def _vhd(source: _Source) -> int:
    at = 0 if source.read(0, 8) == b"conectix" else source.size - SECTOR
    if source.number(at + 60, ">I") not in (2, 3):
        raise UnsafeImage("The VHD image has a parent or is of an unknown type; use a fixed or dynamic one.")
    return source.number(at + 48, ">Q")


def _vhdx(source: _Source) -> int:
    """The size is in the metadata region, usually at 2 MiB: with first bytes only it stays unknown (0)."""
    region = _table(source, 192 * 1024, b"regi", 8, 16, 32, "8b7ca206-4790-4b9a-b8fe-575f050f886e")
    if region is None:
        if source.whole:
            raise UnsafeImage("The VHDX image has no metadata region.")
        return 0
    start = struct.unpack("<Q", region[16:24])[0]
    parameters = _table(source, start, b"metadata", 10, 32, 32, "caa16737-fa36-4d43-b3b6-33f0aa44e76b")
    size = _table(source, start, b"metadata", 10, 32, 32, "2fa54224-cd1b-4876-b211-5dbed83bf4b8")
    if parameters is None or size is None:
        if source.whole:
            raise UnsafeImage("The VHDX image has no size.")
        return 0
    if source.number(start + struct.unpack("<I", parameters[16:20])[0] + 4, "<I") & 0b10:
        raise UnsafeImage("The VHDX image has a parent; merge it first.")
    return source.number(start + struct.unpack("<I", size[16:20])[0], "<Q")


def _table(source: _Source, at: int, mark: bytes, count_at: int, first: int, step: int, guid: str) -> bytes | None:
    """The entry of a VHDX table that carries this GUID."""
    if source.read(at, len(mark)) != mark:
        return None
    count = source.number(at + count_at, "<H")
    wanted = uuid.UUID(guid).bytes_le
    for index in range(min(count, 2047)):
        entry = source.read(at + first + index * step, step)
        if entry[:16] == wanted and len(entry) == step:
            return entry
    return None


def _refused(text: str) -> Callable[[_Source], int]:
    def refuse(source: _Source) -> int:
        raise UnsafeImage(text)

    return refuse


_READERS: dict[str, Callable[[_Source], int]] = {
    "qcow2": _qcow2,
    "vmdk": _vmdk,
    "vdi": _vdi,
    "vhd": _vhd,
    "vhdx": _vhdx,
    "qed": _refused("QED images are not supported; convert with 'qemu-img convert -O qcow2'."),
    "luks": _refused("The image is a LUKS container, which is not supported."),
}
