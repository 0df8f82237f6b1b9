"""The bytes of images: upload, download, stage, import. API: /v2/images/{image_id}/file, /stage, /import.

An upload is a row in status ``saving`` with a token of its own and a time until which it counts as alive; it says so
again every ``BEAT_S`` seconds. When the process dies the time passes and the reconciler puts the image back to
``queued`` and removes what was written. Only whoever holds the current token can make the image active. Memory per
upload is one piece, hashing and writing happen in worker threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from nubila.core import clock
from nubila.core.call import Call, Reply, Route, StreamReply
from nubila.core.db import Busy, patiently
from nubila.core.faults import Fault, bad_request, conflict, forbidden, unavailable
from nubila.core.imagefile import UnsafeImage, inspect
from nubila.services.image.files import CHUNK_BYTES, Sink, directory, path_of, pieces, publish, staged_path
from nubila.services.image.images import allowed, known
from nubila.services.image.kinds import Image

if TYPE_CHECKING:
    from nubila.core.cloud import Cloud
    from nubila.core.db import Tx

Row = dict[str, Any]
BEAT_S = 5.0
ALIVE_S = 30.0
"""An upload that has not said anything for so long is dead."""
INSPECTED_CONTAINERS = (None, "bare", "ami", "aki", "ari")
_I = Image.table
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def alive_until() -> str:
    """The time until which an upload that just wrote counts as alive."""
    return clock.at(time.time() + ALIVE_S)


def _write(cloud: Cloud, work: Callable[[Tx], Any]) -> Any:
    """One transaction of a streaming handler, tried again while the database is busy."""

    def once() -> Any:
        with cloud.store.write() as tx:
            return work(tx)

    try:
        return patiently(once, 8, blindly=True)
    except Busy:
        raise unavailable("The database is busy; try again.") from None


# --- upload --------------------------------------------------------------------------------------------------------


class _Upload:
    """One upload from its first row to its last. ``staging``: for a later import."""

    def __init__(self, call: Call, *, staging: bool) -> None:
        self.call, self.cloud, self.staging = call, call.cloud, staging
        self.id = call.params["image_id"]
        self.token = secrets.token_hex(8)
        self.status = "uploading" if staging else "saving"
        self.row: Row = {}

    @property
    def mine(self) -> tuple[Any, ...]:
        """The condition that nobody took the image over."""
        return (_I.c.id == self.id, _I.c.transfer == self.token)

    def begin(self, tx: Tx) -> None:
        """Check that this may be written, and take it. Raises 403, 404, 409, 400."""
        call = self.call
        call.tx = tx
        row = self.row = known(call)
        allowed(call, "upload_image", row)
        if row["status"] != "queued":
            raise conflict(f"Image status transition from {row['status']} to {self.status} is not allowed", "Conflict")
        lacking = [n for n in ("disk_format", "container_format") if not row[n]]
        if lacking:
            raise bad_request(f"Set {', '.join(lacking)} before you upload.", "Invalid")
        taken = {
            "status": self.status, "transfer": self.token, "transfer_until": alive_until(), "fault": None,
            "updated_at": clock.now(),
        }  # fmt: skip
        if not tx.execute(sa.update(_I).where(_I.c.id == self.id, _I.c.status == "queued").values(**taken)):
            raise conflict(f"Another upload of image {self.id} is going on.", "Conflict")
        tx.ask("image", self.id)

    def beat(self) -> None:
        """Say that we are alive. Raises 410 when the image is gone or was taken from us."""
        if not _write(
            self.cloud, lambda tx: tx.execute(sa.update(_I).where(*self.mine).values(transfer_until=alive_until()))
        ):
            raise Fault(410, f"Image {self.id} was deleted during the upload.", "Gone")

    def give_back(self) -> None:
        """Undo :meth:`begin`."""
        back = {"status": "queued", "transfer": None, "transfer_until": None, "size": None, "updated_at": clock.now()}
        _write(self.cloud, lambda tx: tx.execute(sa.update(_I).where(*self.mine).values(**back)))

    def finish(self, sink: Sink) -> None:
        """Inspect the file and make it the image's."""
        md5, sha512 = sink.finish()
        seen: Row = {"checksum": md5, "os_hash_algo": "sha512", "os_hash_value": sha512}
        fault, virtual = None, sink.size
        if self.row["container_format"] in INSPECTED_CONTAINERS:
            try:
                facts = inspect(sink.path, self.row["disk_format"])
                virtual = facts.virtual_size_bytes or sink.size
            except UnsafeImage as e:
                fault = str(e)
        if fault and not self.staging:
            raise Fault(415, fault, "ImageUnacceptable")
        seen |= {"size": sink.size, "transfer_until": None, "updated_at": clock.now()}
        if self.staging:
            seen |= {"fault": fault and fault[:255]}
        else:
            seen |= {"status": "active", "virtual_size": virtual, "transfer": None}

        def settle(tx: Tx) -> None:
            if not tx.execute(sa.update(_I).where(*self.mine).values(**seen)):
                raise Fault(410, f"Image {self.id} was deleted during the upload.", "Gone")
            if not self.staging:
                publish(sink.path, path_of(self.cloud, self.id))  # while the row is ours
            tx.ask("image", self.id)  # nothing is to be watched any more

        _write(self.cloud, settle)


async def _receive(call: Call, *, staging: bool) -> Reply:
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind != "application/octet-stream":
        raise Fault(415, f"Invalid content type {kind}; send application/octet-stream.", "UnsupportedMediaType")
    limit = call.cloud.settings.image_max_bytes
    if int(call.headers.get("content-length") or 0) > limit:
        raise Fault(413, f"The image is larger than {limit} bytes.", "ImageSizeLimitExceeded")
    upload = _Upload(call, staging=staging)
    await asyncio.to_thread(_write, call.cloud, upload.begin)
    sink: Sink | None = None
    try:
        path = staged_path(call.cloud, upload.id, upload.token)
        sink = await asyncio.to_thread(_open, call.cloud, path)
        assert call.stream is not None
        beat = time.monotonic()
        async for piece in _pieces(call.stream()):
            if sink.size + len(piece) > limit:
                raise Fault(413, f"The image is larger than {limit} bytes.", "ImageSizeLimitExceeded")
            await asyncio.to_thread(sink.write, piece)
            if time.monotonic() - beat > BEAT_S:
                await asyncio.to_thread(upload.beat)
                beat = time.monotonic()
        await asyncio.to_thread(upload.beat)
        await asyncio.to_thread(upload.finish, sink)
    except BaseException as e:
        # Shielded: also a cancelled upload puts the image back before it goes.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(asyncio.to_thread(_give_up, upload, sink))
        if isinstance(e, OSError) and not isinstance(e, ConnectionError):
            raise Fault(
                507 if e.errno == 28 else 503, "The image store cannot be written; see the log.", "Storage"
            ) from e
        if isinstance(e, ConnectionError):
            raise bad_request("The upload ended before the image was complete.", "ClientDisconnect") from None
        raise
    return Reply(None, 204)


def _open(cloud: Cloud, path: Path) -> Sink:
    directory(cloud)
    return Sink(path)


def _give_up(upload: _Upload, sink: Sink | None) -> None:
    if sink is not None:
        sink.discard()
    upload.give_back()


async def _pieces(stream: AsyncIterator[bytes]) -> AsyncIterator[bytearray]:
    """What arrives, gathered into pieces worth a hop to a thread."""
    gathered = bytearray()
    async for chunk in stream:
        gathered += chunk
        if len(gathered) >= CHUNK_BYTES:
            yield gathered
            gathered = bytearray()
    if gathered:
        yield gathered


async def upload(call: Call) -> Reply:
    """PUT /v2/images/{image_id}/file."""
    return await _receive(call, staging=False)


async def stage(call: Call) -> Reply:
    """PUT /v2/images/{image_id}/stage."""
    return await _receive(call, staging=True)


def import_image(call: Call) -> Reply:
    """POST /v2/images/{image_id}/import, method glance-direct: the staged data become the image's."""
    body = call.body
    method = body.get("method") if isinstance(body, dict) else None
    if not isinstance(method, dict) or not isinstance(method.get("name"), str):
        raise bad_request("Import request requires a 'method' field with a 'name'.", "Invalid")
    if method["name"] != "glance-direct":
        raise bad_request(f"method/name: '{method['name']}' must be glance-direct.", "Invalid")
    row = known(call)
    allowed(call, "upload_image", row)
    if row["status"] != "uploading" or row["transfer_until"] is not None:
        raise conflict(f"Image {row['id']} has no staged data to import; its status is {row['status']}.", "Conflict")
    same = (_I.c.id == row["id"], _I.c.status == "uploading")
    call.tx.execute(sa.update(_I).where(*same).values(status="importing", updated_at=clock.now()))
    call.tx.ask("image", row["id"])
    return Reply(None, 202)


# --- download ------------------------------------------------------------------------------------------------------


def _range(text: str, size: int) -> tuple[int, int] | None:
    """(first, length) of a Range header; None when it is not one we honour (then the whole is sent)."""
    m = _RANGE.fullmatch(text.strip())
    if m is None or not (m[1] or m[2]):
        return None
    if not m[1]:
        length = min(int(m[2]), size)
        first = size - length
    else:
        first = int(m[1])
        length = min(int(m[2]) if m[2] else size - 1, size - 1) - first + 1
    if first >= size or length <= 0:
        raise Fault(
            416, f"Invalid start position in Range header: the image has {size} bytes.", "RangeNotSatisfiable",
            headers={"Content-Range": f"bytes */{size}"},
        )  # fmt: skip
    return first, length


def download(call: Call) -> Reply | StreamReply:
    """GET /v2/images/{image_id}/file."""
    row = known(call)
    allowed(call, "download_image", row, call.creds.project_id)
    if row["status"] == "deactivated" and not call.creds.is_admin:
        raise forbidden(f"Image {row['id']} is deactivated: an administrator must reactivate it first.", "Forbidden")
    if row["status"] not in ("active", "deactivated"):
        return Reply(None, 204)
    try:
        file = path_of(call.cloud, row["id"]).open("rb")
    except FileNotFoundError:
        raise Fault(404, f"The data of image {row['id']} are not in the image store.", "NotFound") from None
    headers = {"Content-MD5": row["checksum"] or "", "Accept-Ranges": "bytes"}
    size = row["size"]
    part = _range(call.headers["range"], size) if "range" in call.headers else None
    if part is None:
        return StreamReply(pieces(file, 0, size), size, 200, headers)
    first, length = part
    headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{size}"
    return StreamReply(pieces(file, first, length), length, 206, headers)


_FILE, _STAGE = "/v2/images/{image_id}/file", "/v2/images/{image_id}/stage"
ROUTES = (
    Route(method="GET", path=_FILE, handler=download, doc="Download the data."),
    Route(method="PUT", path=_FILE, handler=upload, doc="Upload the data.", tx="", stream=True, status=204),
    Route(method="PUT", path=_STAGE, handler=stage, doc="Upload data to import later.", tx="", stream=True, status=204),
    Route(
        method="POST", path="/v2/images/{image_id}/import", handler=import_image, doc="Import staged data.", tx="write",
        status=202,
    ),
)  # fmt: skip
