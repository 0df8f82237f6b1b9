"""Build a tiny bootable guest image from the distribution's own packages, without root and without an image mirror.

Packages are downloaded by apt (the only use of the network), read as streams and put together in memory: a kernel and
an initramfs (busybox, an SSH server, what test suites call in a guest), on a disk with one FAT partition booted by
SYSLINUX. About ten seconds the first time; the result is kept in the cache directory under a name derived from the
recipe, so the next build is a copy.

Needs apt and dpkg (Debian or a derivative with the same package names), qemu-img; everything else comes out of the
downloaded packages. Works for an ordinary user.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import stat
import struct
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nubila.core.ports import NeedsOperator, Progress, TryAgain
from nubila.drivers import tiny_files

RECIPE = 3  # raise when the builder itself changes what it makes; the guest's files are hashed anyway
KERNEL = "linux-image-cloud-amd64"
PROGRAMS = {  # package -> paths taken into the guest
    "busybox-static": ("bin/busybox",),
    "dropbear-bin": ("bin/dropbear", "bin/dropbearkey", "bin/dbclient"),
    "sudo": ("bin/sudo", "libexec/sudo/sudoers.so", "libexec/sudo/libsudo_util.so.0*"),
    "util-linux": ("bin/lsblk",),
    "e2fsprogs": ("bin/mke2fs", "etc/mke2fs.conf"),
    "dosfstools": ("bin/mkfs.fat",),
    "netcat-traditional": ("bin/nc.traditional",),
    "libpam-modules": ("lib/x86_64-linux-gnu/security/pam_permit.so", "lib/x86_64-linux-gnu/security/pam_deny.so"),
}
TOOLBOX = {  # what suites call an advanced image: the real tools, not busybox's
    "bash": ("bin/bash",),
    "curl": ("bin/curl",),
    "iproute2": ("bin/ip",),
    "iputils-ping": ("bin/ping",),
    "nmap": ("bin/nping",),
    "python3.11-minimal": ("bin/python3.11",),
    "libpython3.11-minimal": ("lib/python3.11/*",),
    "libpython3.11-stdlib": ("lib/python3.11/selectors.py",),
    "tcpdump": ("bin/tcpdump",),
}
_TOO_BIG = r"lib(atlas|blas|blis|openblas|gfortran|gomp|linear|perl|quadmath|sqlite)"  # nmap's, not nping's
BLKID = {"util-linux": "bin/blkid", "util-linux-extra": "bin/blkid"}  # it moved between releases
TOOLS = ("mtools", "dosfstools", "lz4", "syslinux", "syslinux-common")  # run here, not in the guest
_LOADER = "lib64/ld-linux-x86-64.so.2"
_DISK_MIB = 48
_TOOLBOX_DISK_MIB = 128
_FIRST_SECTOR = 2048
_OPTIONS = "console=ttyS0 quiet cryptomgr.notests no_timer_check net.ifnames=0 random.trust_cpu=on panic=10"
_TIMEOUT_S = 300.0


Programs = Mapping[str, Sequence[str]]
"""Package -> patterns of the paths that are taken into the guest."""


class Entry(NamedTuple):
    """One file of the guest: its mode with type bits, and its bytes (a link's target)."""

    mode: int
    data: bytes


def build(out: Path, progress: Progress, cache: Path | None = None, *, tools: bool = False) -> None:
    """Write a bootable qcow2 image to ``out``; ``cache`` (default ``.tiny-cache`` beside it) keeps what was made.

    With ``tools`` the guest has bash, Python, tcpdump, nping and the real curl, ip and ping as well; it needs 384 MiB.
    Raises NeedsOperator when apt or qemu-img is missing, TryAgain when a download fails.
    """
    cache = (cache or out.parent / ".tiny-cache").absolute()
    cache.mkdir(parents=True, exist_ok=True)
    programs = {**PROGRAMS, **TOOLBOX} if tools else PROGRAMS
    kind = "tools" if tools else "tiny"
    made = cache / f"{kind}-{_recipe(programs)}.qcow2"
    if not made.exists():
        for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("qemu-img", "qemu-utils")):
            if shutil.which(tool) is None:
                raise NeedsOperator(f"{tool} is needed to build the tiny image; install the package {package}.")
        with tempfile.TemporaryDirectory(prefix="build-", dir=cache) as scratch:
            _make(Path(scratch), cache / "packages", progress, programs)
            os.replace(Path(scratch, "disk.qcow2"), made)
        for older in set(cache.glob(f"{kind}-*.qcow2")) - {made}:
            older.unlink()
    part = out.with_name(f".{out.name}.part")
    shutil.copyfile(made, part)
    os.replace(part, out)
    progress(f"tiny image: {out} ({out.stat().st_size >> 20} MiB)")


def _recipe(programs: Programs) -> str:
    text = repr((RECIPE, KERNEL, programs, TOOLS, _OPTIONS, sorted(tiny_files.FILES.items())))
    text += repr((tiny_files.EARLY_MODULES, tiny_files.LATE_MODULES, tiny_files.SPARE_MODULES, tiny_files.LINKS))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _make(scratch: Path, packages: Path, progress: Progress, programs: Programs) -> None:
    began = time.monotonic()
    progress("tiny image: downloading packages with apt")
    kernel_package, debs = _download(packages, programs)
    progress(f"tiny image: {len(debs)} packages ready ({time.monotonic() - began:.1f} s)")
    kernel, modules = _kernel(debs[kernel_package])
    pool: dict[str, Entry] = {}
    for package, deb in debs.items():
        if package != kernel_package:
            pool.update(_members(deb, _wanted(package, programs)))
    Path(scratch, "vmlinuz").write_bytes(kernel)
    Path(scratch, "initrd.cpio").write_bytes(_cpio(_root(pool, modules, programs)))
    progress(f"tiny image: kernel {len(kernel) >> 10} KiB, {len(pool)} files; making the disk")
    _disk(scratch, [debs[name] for name in TOOLS], _DISK_MIB if programs is PROGRAMS else _TOOLBOX_DISK_MIB)
    progress(f"tiny image: built in {time.monotonic() - began:.1f} s")


# --- packages ---------------------------------------------------------------------------------------------------------


def _download(folder: Path, programs: Programs) -> tuple[str, dict[str, Path]]:
    """The name of the kernel's package and the .deb of every package needed."""
    folder.mkdir(exist_ok=True)
    depends = _run("apt-cache", "depends", "--important", KERNEL, check=False)
    if not depends.strip():
        _run("apt-get", "-q", "update", timeout_s=_TIMEOUT_S)
        depends = _run("apt-cache", "depends", "--important", KERNEL, check=False)
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        raise NeedsOperator(f"apt offers no package {KERNEL}; the tiny image needs Debian's package sources.")
    kernel = found[1]
    named = [*programs, *TOOLS]
    options = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    everything = _run("apt-cache", "depends", "--recurse", *options, *named)
    libraries = {
        name
        for name in re.findall(r"^(\S+)$", everything, re.M)
        if re.match(r"(lib|zlib)", name) and "-perl" not in name and not re.match(_TOO_BIG, name)
    }
    names = sorted({kernel, *named, *BLKID, *libraries} - {"libdebian-installer4", "libslang2", "libnewt0.52"})
    uris = _run("apt-get", "download", "--print-uris", *names)
    debs: dict[str, Path] = {}
    for file in re.findall(r"^'[^']*' (\S+\.deb)", uris, re.M):
        debs[file.split("_", 1)[0]] = folder / file
    missing = sorted(name for name, path in debs.items() if not path.exists())
    if missing:
        _run("apt-get", "-q", "download", *missing, cwd=folder, timeout_s=_TIMEOUT_S)
    return kernel, {name: path for name, path in debs.items() if path.exists()}


def _wanted(package: str, programs: Programs) -> tuple[str, ...]:
    more = (BLKID[package],) if package in BLKID else ()
    return (*programs.get(package, ()), *more, "lib/x86_64-linux-gnu/*.so*", "lib64/*")


def _place(name: str) -> str:
    """Where a package's path lies in the guest: no /usr, one directory of programs."""
    path = name.removeprefix("./").removeprefix("usr/")
    return re.sub(r"^sbin/", "bin/", path)


def _members(deb: Path, wanted: Sequence[str]) -> dict[str, Entry]:
    """Files and links of a package that match, under their places in the guest."""
    found: dict[str, Entry] = {}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as stream:
        assert stream.stdout is not None
        with tarfile.open(fileobj=stream.stdout, mode="r|") as archive:
            for member in archive:
                place = _place(member.name)
                if not any(fnmatch.fnmatchcase(place, pattern) for pattern in wanted):
                    continue
                if member.issym():
                    if place not in found:  # /sbin/ip leads to /bin/ip, and both are one directory here
                        found[place] = Entry(stat.S_IFLNK | 0o777, member.linkname.encode())
                elif member.isfile():
                    data = archive.extractfile(member)
                    assert data is not None
                    found[place] = Entry(stat.S_IFREG | member.mode, data.read())
                elif member.islnk():
                    found[place] = found[_place(member.linkname)]
    if stream.returncode:
        raise TryAgain(f"The package {deb.name} is damaged; remove it and build again.")
    return found


def _kernel(deb: Path) -> tuple[bytes, dict[str, bytes]]:
    """The kernel and the guest's modules with all they depend on: name -> bytes, dependencies first."""
    files = _members(deb, ("boot/vmlinuz-*", "lib/modules/*.ko"))
    kernel = next(entry.data for place, entry in files.items() if place.startswith("boot/vmlinuz"))
    by_name = {
        place.rsplit("/", 1)[1][:-3].replace("-", "_"): entry.data
        for place, entry in files.items()
        if "/" in place and place.endswith(".ko")
    }
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name not in by_name:
            return
        for needed in _depends(by_name[name]):
            add(needed)
        order[name] = by_name[name]

    for name in (*tiny_files.EARLY_MODULES, *tiny_files.LATE_MODULES, *tiny_files.SPARE_MODULES):
        add(name.replace("-", "_"))
    return kernel, order


def _depends(module: bytes) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


# --- the guest's root -------------------------------------------------------------------------------------------------


def _root(pool: Mapping[str, Entry], modules: Mapping[str, bytes], programs: Programs) -> dict[str, Entry]:
    root: dict[str, Entry] = {path: Entry(stat.S_IFDIR | mode, b"") for path, mode in tiny_files.DIRECTORIES.items()}
    for path, target in tiny_files.LINKS.items():
        root[path] = Entry(stat.S_IFLNK | 0o777, target.encode())
    patterns = [pattern for package in programs.values() for pattern in package] + sorted(set(BLKID.values()))
    for place, entry in pool.items():
        if any(fnmatch.fnmatchcase(place, pattern) for pattern in patterns):
            root[place] = entry
    # setuid, as distributions for tests do: ping works for everybody, other applets drop the privilege by themselves
    # its shell would run its own nc in the background instead of the wrapper: there it goes by another name
    root["lib/tcp/nc"] = Entry(stat.S_IFREG | 0o755, pool["bin/busybox"].data)
    mine = pool["bin/busybox"].data.replace(b"\0nc\0netstat\0", b"\0nb\0netstat\0")
    root["bin/busybox"] = Entry(stat.S_IFREG | 0o4755, mine)
    for applet in _applets(pool["bin/busybox"].data):
        root.setdefault(f"bin/{applet}", Entry(stat.S_IFLNK | 0o777, b"busybox"))
    for name, target in {
        "mkfs.ext4": "mke2fs",
        "mkfs.ext3": "mke2fs",
        "mkfs.ext2": "mke2fs",
        "mkfs.vfat": "mkfs.fat",
    }.items():
        root[f"bin/{name}"] = Entry(stat.S_IFLNK | 0o777, target.encode())
    _add_libraries(root, pool)
    _add_modules(root, modules)
    for path, (mode, text) in tiny_files.FILES.items():
        root[path] = Entry(stat.S_IFREG | mode, text.encode())
    if "bash" in programs:
        _settle_toolbox(root, pool)
    for path in list(root):
        for parent in list(Path(path).parents)[:-1]:
            if str(parent) not in root:
                root[str(parent)] = Entry(stat.S_IFDIR | 0o755, b"")
    return root


def _settle_toolbox(root: dict[str, Entry], pool: Mapping[str, Entry]) -> None:
    """What the toolbox needs around it; busybox's shell would call its own applets instead of the real programs."""
    root["bin/curl"] = pool["bin/curl"]
    root["bin/python3"] = Entry(stat.S_IFLNK | 0o777, b"python3.11")
    root["bin/ping"] = Entry(stat.S_IFREG | 0o4755, pool["bin/ping"].data)  # packages give it a capability instead
    mode, passwd = root["etc/passwd"]
    passwd = passwd.replace(b":/bin/sh\n", b":/bin/bash\n")
    # tcpdump gives up being root, and ends when there is nobody else to be
    root["etc/passwd"] = Entry(mode, passwd + b"tcpdump:x:100:65534:tcpdump:/:/bin/false\n")
    root["etc/shells"] = Entry(root["etc/shells"].mode, root["etc/shells"].data + b"/bin/bash\n")


def _applets(busybox: bytes) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "busybox")  # it tells its part by its name
        program.write_bytes(busybox)
        program.chmod(0o700)
        return _run(str(program), "--list").split()


def _add_libraries(root: dict[str, Entry], pool: Mapping[str, Entry]) -> None:
    """Every shared library that a program of the guest needs, directly or not, under its soname."""
    libraries: dict[str, bytes] = {}
    for place in pool:
        if ".so" in place:
            data = _follow(pool, place)
            if data is not None:
                libraries.setdefault(place.rsplit("/", 1)[1], data)
    queue = [entry.data for entry in root.values() if entry.data.startswith(b"\x7fELF")]
    done: set[str] = set()
    while queue:
        for name in _needed(queue.pop()):
            if name not in done and name in libraries and f"libexec/sudo/{name}" not in root:
                done.add(name)
                root[f"lib/x86_64-linux-gnu/{name}"] = Entry(stat.S_IFREG | 0o755, libraries[name])
                queue.append(libraries[name])
    loader = _LOADER.rsplit("/", 1)[1]
    root[f"lib/{loader}"] = Entry(stat.S_IFREG | 0o755, libraries[loader])
    root.pop(f"lib/x86_64-linux-gnu/{loader}", None)
    root[f"lib/x86_64-linux-gnu/{loader}"] = Entry(stat.S_IFLNK | 0o777, f"../{loader}".encode())


def _follow(pool: Mapping[str, Entry], place: str) -> bytes | None:
    for _ in range(8):
        entry = pool.get(place)
        if entry is None:
            return None
        if not stat.S_ISLNK(entry.mode):
            return entry.data
        target = entry.data.decode()
        place = _place(target.lstrip("/")) if target.startswith("/") else f"{place.rsplit('/', 1)[0]}/{target}"
    return None


def _needed(elf: bytes) -> list[str]:
    """DT_NEEDED names of a 64-bit little-endian ELF file (System V ABI, chapters 4 and 5); [] for a static one."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return []
    table, size, count = struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
    segments = [struct.unpack_from("<IIQQQQ", elf, table + index * size) for index in range(count)]
    loads = [segment for segment in segments if segment[0] == 1]
    dynamic = next((segment for segment in segments if segment[0] == 2), None)
    if dynamic is None:
        return []
    names: list[int] = []
    strings = 0
    for at in range(dynamic[2], dynamic[2] + dynamic[5], 16):
        tag, value = struct.unpack_from("<QQ", elf, at)
        if tag == 0:
            break
        if tag == 1:
            names.append(value)
        elif tag == 5:
            strings = next(value - load[3] + load[2] for load in loads if load[3] <= value < load[3] + load[5])
    return [elf[strings + name : elf.index(b"\0", strings + name)].decode() for name in names]


def _add_modules(root: dict[str, Entry], modules: Mapping[str, bytes]) -> None:
    """Modules in one folder; lists in loading order for the start, modules.dep and .alias for modprobe."""
    release = next(
        found[1].decode() for data in modules.values() if (found := re.search(rb"\0vermagic=(\S+) ", data)) is not None
    )
    folder = f"lib/modules/{release}"
    for name, data in modules.items():
        root[f"{folder}/{name}.ko"] = Entry(stat.S_IFREG | 0o644, data)

    def closure(names: Iterable[str]) -> list[str]:
        wanted: set[str] = set()
        queue = [name.replace("-", "_") for name in names]
        while queue:
            name = queue.pop()
            if name in modules and name not in wanted:
                wanted.add(name)
                queue += _depends(modules[name])
        return [name for name in modules if name in wanted]

    early = closure(tiny_files.EARLY_MODULES)
    late = [name for name in closure(tiny_files.LATE_MODULES) if name not in early]
    dep = "".join(f"{n}.ko:{''.join(f' {d}.ko' for d in reversed(closure([n])) if d != n)}\n" for n in modules)
    alias = "".join(
        f"alias {found.decode()} {name}\n"
        for name, data in modules.items()
        for found in re.findall(rb"\0alias=([^\0]*)", data)
    )
    for path, text in {
        "etc/modules.early": " ".join(early) + "\n",
        "etc/modules.late": " ".join(late) + "\n",
        f"{folder}/modules.dep": dep,
        f"{folder}/modules.alias": alias,
        f"{folder}/modules.symbols": "",
    }.items():
        root[path] = Entry(stat.S_IFREG | 0o644, text.encode())


def _cpio(root: Mapping[str, Entry]) -> bytes:
    """The "newc" archive the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    parts: list[bytes] = []
    console = ("dev/console", Entry(stat.S_IFCHR | 0o600, b""))
    entries = [*sorted(root.items()), console, ("TRAILER!!!", Entry(0, b""))]
    for number, (path, entry) in enumerate(entries, 1):
        owner = 1000 if path.startswith(f"home/{tiny_files.USER}") else 0
        device = (5, 1) if stat.S_ISCHR(entry.mode) else (0, 0)
        name = path.encode() + b"\0"
        fields = (number, entry.mode, owner, owner, 1, 0, len(entry.data), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        parts += [header, b"\0" * (-len(header) % 4), entry.data, b"\0" * (-len(entry.data) % 4)]
    return b"".join(parts)


# --- the disk ---------------------------------------------------------------------------------------------------------


def _disk(scratch: Path, debs: Sequence[Path], mib: int) -> None:
    """A disk with one bootable FAT partition: SYSLINUX, its configuration, kernel and initramfs."""
    tools = scratch / "tools"
    for deb in debs:
        _run("dpkg-deb", "-x", str(deb), str(tools))
    mbr = next(tools.rglob("mbr/mbr.bin")).read_bytes()
    raw = scratch / "disk.raw"
    sectors = mib * 2048 - _FIRST_SECTOR
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x0E, b"\xfe\xff\xff", _FIRST_SECTOR, sectors)
    with open(raw, "wb") as file:
        file.write(mbr[:440].ljust(446, b"\0") + entry + b"\0" * 48 + b"\x55\xaa")
        file.truncate(mib << 20)
    Path(scratch, "syslinux.cfg").write_text(
        f"DEFAULT tiny\nPROMPT 0\nTIMEOUT 0\nLABEL tiny\n LINUX vmlinuz\n INITRD initrd\n APPEND {_OPTIONS}\n"
    )
    places = [tools / "usr/bin", tools / "bin", tools / "usr/sbin", tools / "sbin"]
    env = {
        "PATH": ":".join([*(str(place) for place in places), os.environ.get("PATH", "/usr/bin:/bin")]),
        "MTOOLS_SKIP_CHECK": "1",
        "LC_ALL": "C",
    }
    # LZ4 unpacks ten times faster than gzip, which is felt where the guest's processor is emulated
    _run("lz4", "-q", "-l", "-12", "initrd.cpio", "initrd", cwd=scratch, env=env, timeout_s=_TIMEOUT_S)
    offset = _FIRST_SECTOR * 512
    label = ("-n", "TINYBOOT", "-F", "16", "-s", "16", f"--offset={_FIRST_SECTOR}")
    _run("mkfs.vfat", *label, raw.name, str(sectors // 2), cwd=scratch, env=env)
    _run("mcopy", "-i", f"{raw.name}@@{offset}", "vmlinuz", "initrd", "syslinux.cfg", "::", cwd=scratch, env=env)
    _run("syslinux", "--install", "--offset", str(offset), raw.name, cwd=scratch, env=env)
    # not compressed: the firmware reads in small pieces, and unpacking each costs more than the bytes saved
    _run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", raw.name, "disk.qcow2", cwd=scratch)


def _run(
    *command: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout_s: float = 60.0,
) -> str:
    found = shutil.which(command[0], path=env["PATH"]) if env else command[0]
    try:
        done = subprocess.run(
            [found or command[0], *command[1:]],
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise TryAgain(f"{command[0]} took more than {timeout_s:.0f} s.") from None
    except FileNotFoundError:
        raise NeedsOperator(f"{command[0]} is not installed on this host.") from None
    if check and done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise TryAgain(f"{Path(command[0]).name} failed: {words[-1] if words else done.returncode}")
    return done.stdout
