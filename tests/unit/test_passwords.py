"""Password hashes: each format verifies its own, refuses the rest, and says when it is out of date."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nubila.core.passwords import ALGORITHMS, Passwords, generate_password, verify

CHEAP = {"bcrypt": 4, "bcrypt_sha256": 4, "scrypt": 4, "pbkdf2_sha512": 1000}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("password", ["s3cret", "", "ü\ud800\0x", "x" * 72, "x" * 73, "ß" * 2000])
def test_a_password_matches_its_own_hash_only(algorithm: str, password: str) -> None:
    passwords = Passwords(algorithm, CHEAP[algorithm])
    hashed = passwords.hash(password)
    assert hashed != passwords.hash(password)
    assert verify(hashed, password)
    assert not verify(hashed, password + "x")
    assert not verify(hashed, password[:-1] + "y")
    assert password == "" or password not in hashed
    assert not passwords.needs_rehash(hashed)
    assert len(hashed) < 255


def test_formats_of_others_are_verified() -> None:
    sha256 = "$bcrypt-sha256$v=2,t=2b,r=12$n79VH.0Q2TMWmt3Oqt9uku$Kq4Noyk3094Y2QlB8NdRT8SvGiI4ft2"  # passlib 1.7.3
    assert verify(sha256, "password")
    assert not verify(sha256, "passwore")
    # RFC 7914 section 12: scrypt("password", "NaCl", N=1024, r=8, p=16)
    rfc = (
        "$scrypt$ln=10,r=8,p=16$TmFDbA$/bq+HJ00cgB4VucZDQHp/nxq18vII3gw53N2Y0s3MWIurzDZLiKjiG/xCSedmDDaxyevuUqD7m2D"
        "YMvfoswGQA"
    )
    assert verify(rfc, "password")
    assert not verify(rfc, "Password")


def test_a_hash_made_another_way_is_due_for_a_new_one() -> None:
    now = Passwords("bcrypt", 5)
    for algorithm in ALGORITHMS:
        assert now.needs_rehash(Passwords(algorithm, CHEAP[algorithm]).hash("x"))
    assert not now.needs_rehash(now.hash("x" * 100))
    assert now.needs_rehash("rubbish")


HASHES = [Passwords(algorithm, CHEAP[algorithm]).hash("x") for algorithm in ALGORITHMS]


@settings(max_examples=1500, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80),
        st.text(alphabet="$2bav=,rtlnp1./AZ", max_size=80),
        st.tuples(st.sampled_from(HASHES), st.integers(0, 120), st.sampled_from("$=,.A \0é")).map(
            lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + 1 :]
        ),
        st.tuples(st.sampled_from(HASHES), st.integers(0, 120)).map(lambda t: t[0][: t[1]]),
    )
)
def test_a_damaged_hash_matches_nothing_and_raises_nothing(hashed: str) -> None:
    if hashed not in HASHES:
        assert not verify(hashed, "y")


@pytest.mark.parametrize("algorithm", ["scrypt", "pbkdf2_sha512"])
def test_a_hash_that_is_cut_off_matches_nothing(algorithm: str) -> None:
    hashed = Passwords(algorithm, CHEAP[algorithm]).hash("x")
    assert verify(hashed, "x")
    start = hashed.rindex("$") + 1
    for left in range(4, 22, 4):  # whole bytes of the right digest
        assert not verify(hashed[: start + left], "x")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_unknown_user_takes_as_long_as_a_wrong_password(algorithm: str) -> None:
    passwords = Passwords(algorithm, {"bcrypt": 8, "bcrypt_sha256": 8, "scrypt": 12, "pbkdf2_sha512": 20000}[algorithm])
    hashed = passwords.hash("right")

    def best(fn: object) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            assert fn() is False  # type: ignore[operator]
            times.append(time.process_time() - start)
        return min(times)

    known, unknown = best(lambda: verify(hashed, "wrong")), best(lambda: passwords.dummy_verify("wrong"))
    assert 0.5 < unknown / known < 2


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="is not known"):
        Passwords("md5")
    with pytest.raises(ValueError, match="4 to 31"):
        Passwords("bcrypt", 3)
    assert Passwords().rounds == 12


def test_generated_passwords() -> None:
    made = {generate_password() for _ in range(200)}
    assert len(made) == 200
    assert all(len(p) == 20 and p.isalnum() and not set(p) & set("0O1lIi") for p in made)
    with pytest.raises(ValueError, match="8 characters"):
        generate_password(4)
