"""Attack the parsing of tokens: whatever is not letter for letter a token of ours is refused, and nothing crashes.

As a program, for longer than the tests have time: ``python tests/fuzz_tokens.py --seconds 3600``.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import random
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from cryptography.fernet import Fernet

from nubila.core import payload as wire
from nubila.core.jws import JwsKeys
from nubila.core.tokens import InvalidToken, Payload, TokenKeys, new_payload, open_keys, setup_keys

LATE = 4e9  # in 2096: expiry must not hide anything
ALPHABET = "ABCxyz019-_=+/ .\n\r\t\0\x7fé\ud800\u202e\U0001f511"
URL_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def payloads(rng: random.Random) -> list[Payload]:
    """Payloads of every shape."""
    ids = [f"{rng.getrandbits(128):032x}" for _ in range(9)]
    scopes: list[dict[str, Any]] = [
        {}, {"project_id": ids[0]}, {"domain_id": "default"}, {"system": True},
        {"project_id": ids[0], "trust_id": ids[1]}, {"project_id": ids[0], "app_cred_id": ids[2]},
        {"project_id": ids[0], "access_token_id": ids[3]}, {"project_id": ids[0], "thumbprint": b64(rng.randbytes(32))},
        {"idp_id": "google", "protocol_id": "openid", "group_ids": tuple(ids[4:])},
    ]  # fmt: skip
    return [new_payload(ids[8], ("password", "token"), 3600, now=LATE, **scope) for scope in scopes]


class Attack:
    """A cloud's keys, real tokens of both formats, another cloud's tokens and a sealed text, and ways to spoil them."""

    def __init__(self, directory: Path, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.keys = open_keys(directory / "mine", "jws")
        assert self.keys.signed is not None
        self.signed: JwsKeys = self.keys.signed
        other = open_keys(directory / "other", "jws")
        setup_keys(directory / "other" / "fernet")
        mine, theirs = payloads(self.rng), payloads(self.rng)
        plain = TokenKeys(directory / "mine" / "fernet")
        self.fernets = [plain.issue(p) for p in mine]
        self.jws = [self.keys.issue(p) for p in mine]
        self.good = {*self.fernets, *self.jws}
        foreign = [other.issue(p) for p in theirs]
        foreign += [TokenKeys(directory / "other" / "fernet").issue(p) for p in theirs]
        foreign += [self.keys.seal(wire.pack(mine[0])), self.keys.seal(b"receipt"), *self._confused(directory)]
        self.corpus = [*self.good, *foreign]
        self.foreign = foreign
        self.raw = Fernet((directory / "mine" / "fernet" / "1").read_bytes())
        self.count = self.refused = 0

    def _confused(self, directory: Path) -> list[str]:
        """Signed with the public key as a secret, not at all, by a key the token brings along, or so it says."""
        out = []
        public = next((directory / "mine" / "jws" / "public").glob("*.pem")).read_bytes()
        header, body, signature = self.jws[1].split(".")
        ours = json.loads(unb64(header))
        for alg in (
            "none",
            "None",
            "NONE",
            "HS256",
            "HS512",
            "RS256",
            "ES384",
            "ES256K",
            "EdDSA",
            "PS256",
            "",
            None,
            1,
        ):
            said = b64(json.dumps({**ours, "alg": alg}, separators=(",", ":")).encode())
            mac = b64(hmac.digest(public, f"{said}.{body}".encode(), hashlib.sha256))
            out += [f"{said}.{body}.{end}" for end in ("", mac, signature, "A" * 86)]
        for more in (
            {"jwk": {"kty": "EC"}},
            {"jku": "http://127.0.0.1/"},
            {"kid": "../../private/1"},
            {"crit": ["exp"]},
        ):
            said = b64(json.dumps({**ours, **more}, separators=(",", ":")).encode())
            out.append(f"{said}.{body}.{signature}")
        order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
        r, s = unb64(signature)[:32], int.from_bytes(unb64(signature)[32:], "big")
        twin = b64(r + (order - s).to_bytes(32, "big"))  # as valid to ECDSA as the one we made
        return [
            *out,
            f"{header}.{body}.{twin}",
            f"{header}.{body}.{'A' * 86}",
            f"..{signature}",
            f"{header}..",
            "..",
            "ey",
        ]

    def spoiled(self) -> Any:
        """Something that is probably not a token."""
        rng = self.rng
        token = rng.choice(self.corpus)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            token = self._change(token)
        return token

    def _change(self, token: str) -> str:  # noqa: C901  # a list of ways
        rng, at = self.rng, self.rng.randrange(len(token) + 1)
        match rng.randrange(14):
            case 0:
                return token[:at] + rng.choice(ALPHABET) + token[at + 1 :]
            case 1:
                return token[:at] + rng.choice(URL_SAFE) + token[at + 1 :]
            case 2:
                return token[:at] + rng.choice(ALPHABET) + token[at:]
            case 3:
                return token[:at]
            case 4:
                return token[at:]
            case 5:
                return token[:-1] + rng.choice(URL_SAFE)
            case 6:
                return self._flipped(token)
            case 7:
                return token[:at] + rng.choice(self.corpus)[at:]
            case 8:
                return token[:at] + token[at : at + 9] * rng.randrange(2, 400) + token[at:]
            case 9:
                return token + "=" * rng.randrange(1, 4)
            case 10:
                return token.swapcase() if rng.random() < 0.3 else token[:at] + token[at:].swapcase()
            case 11:
                parts = [*token.split("."), *rng.choice(self.corpus).split(".")]
                return ".".join(rng.sample(parts, min(len(parts), rng.randrange(1, 5))))
            case 12:
                return token.encode("utf-8", "surrogatepass").decode("latin-1")
            case _:
                return rng.choice(("", " ", "\0")) + token + rng.choice((" ", "\n", "\0", "%00"))

    def _flipped(self, token: str) -> str:
        parts = token.split(".")
        which = self.rng.randrange(len(parts))
        try:
            raw = bytearray(unb64(parts[which]))
        except (ValueError, UnicodeEncodeError):
            return token[::-1]
        if raw:
            raw[self.rng.randrange(len(raw))] ^= 1 << self.rng.randrange(8)
        parts[which] = b64(bytes(raw))
        return ".".join(parts)

    def once(self) -> None:
        """One attack from outside. AssertionError when it is accepted; anything but a refusal comes through."""
        self._must_refuse(self.spoiled())

    def _must_refuse(self, token: Any) -> None:
        self.count += 1
        if token in self.good:
            return
        try:
            got = self.keys.read(token)
        except InvalidToken:
            self.refused += 1
        else:
            raise AssertionError(f"accepted {token!r} as {got}")
        try:
            data = self.keys.unseal(token)
        except InvalidToken:
            return
        assert token in self.foreign, f"unsealed {token!r} as {data!r}"

    def from_within(self) -> None:
        """Odd content under a valid signature, as a bug or a newer version would write it: refused or sound."""
        rng = self.rng
        self.count += 1
        if rng.random() < 0.7:
            data = bytearray(wire.pack(rng.choice(payloads(rng))))
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            token = self.raw.encrypt(bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data))
            text = token.decode().rstrip("=")
        else:
            claims: dict[str, Any] = json.loads(unb64(rng.choice(self.jws).split(".")[1]))
            odd = [None, 0, -1, 1e308, 2**70, "", "é" * 5, [], [1], {}, True, struct.pack("d", 1.5).hex()]
            for name in rng.sample(sorted(claims), min(2, len(claims))):
                claims[name] = rng.choice(odd)
            text = self._sign(json.dumps(claims).encode())
        try:
            got = self.keys.read(text)
        except InvalidToken:
            self.refused += 1
            return
        wire.iso(got.expires_at)
        assert msgspec.convert(msgspec.to_builtins(got), Payload) == got, f"{got} is not sound"
        assert got.audit_id

    def _sign(self, body: bytes) -> str:
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        from nubila.core import jws

        pairs = self.signed._followed.current()
        assert pairs.signs is not None
        signed = f"{pairs.header}.{b64(body)}"
        r, s = decode_dss_signature(pairs.signs.sign(signed.encode(), jws._ES256))
        return f"{signed}.{b64(r.to_bytes(32, 'big') + min(s, jws._ORDER - s).to_bytes(32, 'big'))}"

    def run(self, inputs: int = 0, seconds: float = 0.0) -> None:
        """Attack so many times, or for so long."""
        for token in self.foreign:
            self._must_refuse(token)
        until = time.monotonic() + seconds
        while self.count < inputs or (seconds and time.monotonic() < until):
            for _ in range(19):
                self.once()
            self.from_within()


def main() -> None:
    """Run for some time and say how many inputs were tried."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        attack = Attack(Path(directory), args.seed)
        started = time.monotonic()
        try:
            attack.run(seconds=args.seconds)
        finally:
            taken = time.monotonic() - started
            print(
                f"seed {args.seed}: {attack.count} inputs in {taken:.0f} s, {attack.count / taken:.0f}/s,"
                f" {attack.refused} refused",
                flush=True,
            )


if __name__ == "__main__":
    main()
