"""C2PA manifest stores for tests, put together box by box, and the containers that hold them."""

import struct
import zlib
from typing import Any

TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def cbor(value: Any) -> bytes:
    def head(kind: int, number: int) -> bytes:
        if number < 24:
            return bytes([kind << 5 | number])
        return bytes([kind << 5 | 25]) + struct.pack(">H", number)

    if isinstance(value, dict):
        return head(5, len(value)) + b"".join(cbor(key) + cbor(item) for key, item in value.items())
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(cbor, value))
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, int):
        return head(0, value)
    return head(3, len(value.encode())) + value.encode()


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def superbox(label: str, *contents: bytes) -> bytes:
    return box(b"jumb", box(b"jumd", bytes(16) + b"\3" + label.encode() + b"\0") + b"".join(contents))


def manifest(name: str, claim: Any, actions: Any = None) -> bytes:
    parts = [superbox("c2pa.claim.v2", box(b"cbor", cbor(claim)))]
    if actions is not None:
        actions_box = superbox("c2pa.actions.v2", box(b"cbor", cbor({"actions": actions})))
        parts.insert(0, superbox("c2pa.assertions", actions_box))
    return superbox(f"urn:c2pa:{name}", *parts)


def store(*manifests: bytes) -> bytes:
    return superbox("c2pa", *manifests)


def firefly_store() -> bytes:
    return store(
        manifest(
            "one",
            {"claim_generator_info": [{"name": "Adobe_Firefly", "version": "2.0"}], "alg": "sha256"},
            [{"action": "c2pa.created", "digitalSourceType": TRAINED, "softwareAgent": {"name": "Adobe Firefly"}}],
        )
    )


def in_jpeg(jpeg: bytes, content: bytes, part: int = 300) -> bytes:
    """A JPEG with a C2PA store in segments of a few hundred bytes."""
    header, body, segments = content[:8], content[8:], b""
    for number, at in enumerate(range(0, len(body), part), 1):
        segment = b"JP" + struct.pack(">HI", 1, number) + header + body[at : at + part]
        segments += b"\xff\xeb" + struct.pack(">H", len(segment) + 2) + segment
    return jpeg[:2] + segments + jpeg[2:]


def in_png(png: bytes, content: bytes, kind: bytes = b"caBX") -> bytes:
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]


def in_webp(webp: bytes, content: bytes) -> bytes:
    chunk = b"C2PA" + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(webp) - 8 + len(chunk)) + webp[8:] + chunk


def in_boxes(heif: bytes, content: bytes) -> bytes:
    uuid = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
    return heif + box(b"uuid", uuid + bytes(4) + b"manifest\0" + bytes(8) + content)
