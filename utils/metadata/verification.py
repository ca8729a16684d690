"""Check of the signature in Content Credentials, by the optional package c2pa-python and without a network.

A valid signature shows that the file has not changed since it was signed. Only a trust list could show who signed it,
and none is used here: anybody can issue a certificate under any name.
"""

from __future__ import annotations

import io
import json
import re

UNVERIFIED = "not verified"
_SETTINGS = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
_MEDIA_TYPES = (
    (rb"\xff\xd8\xff", "image/jpeg"),
    (rb"\x89PNG\r\n", "image/png"),
    (rb"RIFF....WEBP", "image/webp"),
    (rb"....ftypavi[fs]", "image/avif"),
    (rb"....ftyp", "image/heif"),
    (rb"GIF8", "image/gif"),
    (rb"II\*\0|MM\0\*", "image/tiff"),
)


def verify_credentials(data: bytes) -> str:
    """Say in a few words whether the signature of the active C2PA manifest matches the bytes of an image file."""
    media_type = next((name for start, name in _MEDIA_TYPES if re.match(start, data, re.DOTALL)), None)
    try:
        from c2pa import Context, Reader

        with Context.from_dict(_SETTINGS) as context, Reader(media_type, io.BytesIO(data), context=context) as reader:
            report = json.loads(reader.json())
        state = report["validation_state"]
        signer = report["manifests"][report["active_manifest"]].get("signature_info", {}).get("issuer", "")
    except Exception:  # not installed, or its many errors for damaged or unsigned manifests
        return UNVERIFIED
    if state == "Invalid":
        return "the signature does not match this file"
    return f"the signature matches this file; its certificate names {signer or 'nobody'}, which is not verified"
