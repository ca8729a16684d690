"""Signatures of Content Credentials: a file as it was signed, a changed one, and a check that is not installed."""

import datetime
import io
import json
import sys

import pytest
from PIL import Image

from tests.utils.metadata import manifests
from utils.metadata.findings import read_findings
from utils.metadata.verification import verify_credentials


@pytest.fixture(scope="module")
def signed() -> bytes:
    """A JPEG signed under a certificate made for the test."""
    c2pa = pytest.importorskip("c2pa", reason="c2pa-python is not installed")
    chain, key = make_certificates()
    action = {"action": "c2pa.created", "digitalSourceType": manifests.TRAINED}
    content = {
        "claim_generator_info": [{"name": "test_app", "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
    }
    plain, out = io.BytesIO(), io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(plain, "JPEG")
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, chain, key, None))
    with c2pa.Builder(json.dumps(content)) as builder:
        builder.sign(signer, "image/jpeg", io.BytesIO(plain.getvalue()), out)
    return out.getvalue()


def make_certificates() -> tuple[bytes, bytes]:
    """A chain of two certificates and the key of the first, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("signer", "authority")}
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str) -> bytes:
        is_authority = name == "authority"
        subject, issuer = (
            x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test Press"),
                    x509.NameAttribute(NameOID.COMMON_NAME, one),
                ]
            )
            for one in (name, "authority")
        )
        public, authority = keys[name].public_key(), keys["authority"].public_key()
        usage = x509.KeyUsage(True, False, False, False, False, is_authority, is_authority, False, False)
        builder = (
            x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=9))
            .add_extension(x509.BasicConstraints(is_authority, None), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), False)
        )
        if not is_authority:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        return builder.sign(keys["authority"], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    key = keys["signer"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate("signer") + certificate("authority"), key


def test_a_signature_matches_the_file_that_was_signed(signed):
    first, second, _ = read_findings(signed)
    words = "the signature matches this file; its certificate names Test Press, which is not verified"
    assert first == {"what": "content credentials", "value": f"claim by test_app 1; {words}", "where": "JPEG APP11"}
    assert second["value"] == "trainedAlgorithmicMedia, made by a generator"


@pytest.mark.parametrize("place", ["pixels", "claim"])
def test_a_changed_file_is_noticed(signed, place):
    at = len(signed) - 300 if place == "pixels" else signed.index(b"test_app")
    changed = signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :]
    assert read_findings(changed)[0]["value"].endswith("; the signature does not match this file")


def test_without_the_package_claims_are_not_verified(signed, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert read_findings(signed)[0]["value"] == "claim by test_app 1; not verified"


def test_files_without_a_signature_are_not_verified():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    for data in (
        b"",
        b"\xff\xd8\xff",
        buffer.getvalue(),
        manifests.in_png(buffer.getvalue(), manifests.firefly_store()),
    ):
        assert verify_credentials(data) in ("not verified", "the signature does not match this file")
