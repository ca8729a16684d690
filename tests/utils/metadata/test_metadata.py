"""Metadata as evidence: generators, programs, cameras and Content Credentials that a file names; hostile files."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from tests.utils.metadata import manifests
from utils.metadata.blocks import MAX_BLOCK_BYTES, read_blocks
from utils.metadata.cbor import decode_cbor
from utils.metadata.credentials import read_credentials
from utils.metadata.findings import MAX_FINDINGS, MAX_VALUE, findings_text, read_findings

PARAMETERS = (
    "a portrait, 85 mm\nNegative prompt: blurry\nSteps: 30, Sampler: Euler a, CFG scale: 7, Seed: 1, Model: sd_xl"
)
XMP = "<x:xmpmeta><rdf:RDF><rdf:Description {attributes}>{elements}</rdf:Description></rdf:RDF></x:xmpmeta>"
NO_CAMERA = {"what": "camera", "value": "none named", "where": "file"}


def encode(kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def png(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key.replace("_colon_", ":"), text, zip=len(text) > 200)
    return encode("PNG", pnginfo=info)


def exif(**tags) -> Image.Exif:
    numbers = {"description": 0x010E, "make": 0x010F, "model": 0x0110, "software": 0x0131}
    block = Image.Exif()
    for name, value in tags.items():
        if name == "comment":
            block.get_ifd(0x8769)[0x9286] = value
        else:
            block[numbers[name]] = value
    return block


def xmp(attributes: str = "", elements: str = "") -> bytes:
    return XMP.format(attributes=attributes, elements=elements).encode()


def statements(data: bytes) -> set[tuple[str, str, str]]:
    """What, the first word of the value, and where; without the finding that no camera is named."""
    found = [finding for finding in read_findings(data) if finding != NO_CAMERA]
    return {(one["what"], one["value"].split()[0].rstrip(":,"), one["where"]) for one in found}


SOURCES = [
    (png(parameters=PARAMETERS), ("generator", "Stable", "PNG text parameters")),
    (png(prompt='{"3": {"class_type": "KSampler"}}'), ("generator", "ComfyUI", "PNG text prompt")),
    (png(workflow='{"last_node_id": 9, "nodes": []}' + " " * 300), ("generator", "ComfyUI", "PNG text workflow")),
    (png(invokeai_metadata="{}"), ("generator", "InvokeAI", "PNG text invokeai_metadata")),
    (png(Software="NovelAI"), ("generator", "NovelAI", "PNG text Software")),
    (
        png(Description="a cat --v 6 Job ID: 0a1b2c3d-1111-2222-3333-444455556666"),
        ("generator", "Midjourney", "PNG text Description"),
    ),
    (png(Software="Adobe ImageReady"), ("software", "Adobe", "PNG text Software")),
    (
        encode(exif=exif(comment=b"UNICODE\0" + PARAMETERS.encode("utf-16-be"))),
        ("generator", "Stable", "JPEG EXIF UserComment"),
    ),
    (
        encode(exif=exif(comment=b"UNICODE\0" + PARAMETERS.encode("utf-16-le"))),
        ("generator", "Stable", "JPEG EXIF UserComment"),
    ),
    (
        encode("WEBP", exif=exif(comment=b"ASCII\0\0\0" + PARAMETERS.encode())),
        ("generator", "Stable", "WebP EXIF UserComment"),
    ),
    (encode("WEBP", exif=exif(make='workflow:{"nodes": []}')), ("generator", "ComfyUI", "WebP EXIF Make, Model")),
    (encode(exif=exif(software="Adobe Photoshop 26.1")), ("software", "Adobe", "JPEG EXIF Software")),
    (encode(exif=exif(make="Canon", model="Canon EOS R5")), ("camera", "Canon", "JPEG EXIF Make, Model")),
    (encode("TIFF", exif=exif(make="Apple", model="iPhone 15")), ("camera", "Apple", "TIFF tags Make, Model")),
    (encode("PNG", exif=exif(make="Apple", model="iPhone 15")), ("camera", "Apple", "PNG EXIF Make, Model")),
    (encode(xmp=xmp('xmp:CreatorTool="GIMP 3.0"')), ("software", "GIMP", "JPEG XMP CreatorTool")),
    (encode(xmp=xmp('tiff:Make="SONY" tiff:Model="ILCE-7M4"')), ("camera", "SONY", "JPEG XMP Make, Model")),
    (
        encode(xmp=xmp(f'Iptc4xmpExt:DigitalSourceType="{manifests.TRAINED}"')),
        ("source type", "trainedAlgorithmicMedia", "JPEG XMP DigitalSourceType"),
    ),
    (
        encode(xmp=xmp(elements=f"<Iptc4xmpExt:DigitalSourceType>{manifests.TRAINED}</Iptc4xmpExt:DigitalSourceType>")),
        ("source type", "trainedAlgorithmicMedia", "JPEG XMP DigitalSourceType"),
    ),
    (
        encode("WEBP", xmp=xmp(elements="<photoshop:Credit>Made with Google AI</photoshop:Credit>")),
        ("generator", "Made", "WebP XMP Credit"),
    ),
    (
        png(XML_colon_com="")[:33]
        + manifests.in_png(bytes(33), b"XML:com.adobe.xmp\0\0\0\0\0" + xmp('xmp:CreatorTool="Midjourney"'), b"iTXt")[
            33:
        ]
        + png()[33:],
        ("generator", "Midjourney", "PNG XMP CreatorTool"),
    ),
    (encode(comment=b"Created with DALL-E 3"), ("generator", "Created", "JPEG comment")),
    (encode("GIF", comment=b"Created with Ideogram.ai"), ("generator", "Created", "GIF comment")),
]


@pytest.mark.parametrize(("data", "expected"), SOURCES, ids=[" ".join(expected[:3]) for _, expected in SOURCES])
def test_what_a_file_says_is_found(data, expected):
    assert statements(data) == {expected}


def test_texts_of_iptc_are_found():
    record = b"".join(
        b"\x1c\x02" + bytes([number]) + struct.pack(">H", len(text)) + text
        for number, text in ((0x41, b"Capture One"), (0x6E, b"Made with Google AI"))
    )
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(record)) + record
    jpeg = encode()
    data = jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]
    assert statements(data) == {("software", "Capture", "JPEG IPTC"), ("generator", "Made", "JPEG IPTC")}


def test_a_file_that_says_nothing():
    for data in (encode(), encode("PNG"), encode("BMP"), b"", b"\xff\xd8", b"no image at all"):
        assert read_findings(data) == [NO_CAMERA]


def test_words_of_a_caption_are_no_generator():
    data = encode(exif=exif(description="Fireflies over the Imagen hotel; flux of visitors, an ideogram"))
    assert read_findings(data) == [NO_CAMERA]


CONTAINERS = {
    "JPEG APP11": lambda content: manifests.in_jpeg(encode(), content),
    "PNG caBX": lambda content: manifests.in_png(encode("PNG"), content),
    "WebP C2PA": lambda content: manifests.in_webp(encode("WEBP"), content),
    "C2PA box": lambda content: manifests.in_boxes(b"\0\0\0\x18ftypheic" + bytes(12), content),
}
if features.check("avif"):
    CONTAINERS["C2PA box in AVIF"] = lambda content: manifests.in_boxes(encode("AVIF"), content)


@pytest.mark.parametrize("name", CONTAINERS)
def test_content_credentials_are_claims(name):
    where = name.removesuffix(" in AVIF")
    found = [finding for finding in read_findings(CONTAINERS[name](manifests.firefly_store())) if finding != NO_CAMERA]
    assert found == [
        {"what": "content credentials", "value": "claim by Adobe_Firefly 2.0; not verified", "where": where},
        {"what": "generator", "value": "Adobe_Firefly 2.0", "where": where},
        {"what": "generator", "value": "Adobe Firefly", "where": where},
        {"what": "source type", "value": "trainedAlgorithmicMedia, made by a generator", "where": where},
    ]


def test_every_manifest_of_a_store_is_read():
    camera = manifests.manifest("a", {"claim_generator": "Leica Camera"}, [{"digitalSourceType": "x/digitalCapture"}])
    content = manifests.store(camera, manifests.manifest("b", {"claim_generator_info": {"name": "Photoshop"}}))
    found = read_findings(manifests.in_jpeg(encode(), content))
    assert [finding["value"] for finding in found[:3]] == [
        "claim by Leica Camera; not verified",
        "digitalCapture, taken with a camera",
        "claim by Photoshop; not verified",
    ]
    assert found[2]["where"] == "JPEG APP11, manifest 2 of 2"


def deep_cbor() -> bytes:
    return b"\x81" * 10_000 + b"\0"


DAMAGED = {
    "cut": manifests.firefly_store()[:-40],
    "a box of size 0": manifests.firefly_store().replace(struct.pack(">I", 8), bytes(4), 1)[:30] + bytes(30),
    "no claim at all": manifests.superbox("c2pa"),
    "deep": manifests.store(
        manifests.superbox("m", manifests.superbox("c2pa.claim", manifests.box(b"cbor", deep_cbor())))
    ),
    "endless array": manifests.store(
        manifests.superbox(
            "m", manifests.superbox("c2pa.claim", manifests.box(b"cbor", b"\x9a\xff\xff\xff\xff" + bytes(60_000)))
        )
    ),
    "a thousand claims": manifests.store(*(manifests.manifest(str(number), {}) for number in range(1000))),
}


def nested_boxes(depth: int) -> bytes:
    content = manifests.box(b"cbor", b"\0")
    for _ in range(depth):
        content = manifests.superbox("c2pa", content)
    return content


DAMAGED["boxes in boxes"] = nested_boxes(500)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_block_is_named_so(name):
    start = time.process_time()
    found = read_findings(manifests.in_png(encode("PNG"), DAMAGED[name]))
    assert found[0]["what"] == "content credentials" and found[0]["value"].startswith("C2PA block, damaged (")
    assert found[0]["value"].endswith("not verified") and time.process_time() - start < 5


def test_random_damage_never_raises():
    rng = np.random.default_rng(0)
    files = [build(manifests.firefly_store()) for build in CONTAINERS.values()] + [data for data, _ in SOURCES]
    for data in files:
        for _ in range(12):
            broken = bytearray(data[: rng.integers(len(data) // 2, len(data) + 1)])
            for at in rng.integers(0, len(broken), 6):
                broken[at] = rng.integers(0, 256)
            found = read_findings(bytes(broken))
            assert found and all(len(finding["value"]) <= MAX_VALUE for finding in found)
            assert "\n" not in findings_text(found)


def many_texts() -> bytes:
    bomb = b"parameters\0\0" + zlib.compress(bytes(50 << 20))
    data = encode("PNG")
    for _ in range(100):
        data = manifests.in_png(data, bomb, b"zTXt")
    return data


HUGE = {
    "texts that inflate to gigabytes": many_texts,
    "60 MB of EXIF": lambda: manifests.in_png(encode("PNG"), b"MM\0*\0\0\0\x08\xff\xff" + bytes(60_000_000), b"eXIf"),
    "60 MB of segments": lambda: (
        lambda d: d[:2] + (b"\xff\xe1\xff\xff" + b"Exif\0\0".ljust(65_533, b"M")) * 915 + d[2:]
    )(encode()),
    "XMP of names": lambda: manifests.in_png(
        encode("PNG"), b"XML:com.adobe.xmp\0\0\0\0\0" + b"a:Credit>" * 200_000 + b" " * 1_000_000, b"iTXt"
    ),
    "XMP of spaces": lambda: manifests.in_png(
        encode("PNG"), b"XML:com.adobe.xmp\0\0\0\0\0" + (b"<a:Credit>" + b" " * 3000) * 2000, b"iTXt"
    ),
    "parameters that never end": lambda: manifests.in_png(encode("PNG"), b"x\0" + b"Steps: 1 " * 500_000, b"tEXt"),
    "a million chunks": lambda: encode("PNG")[:33] + (b"\0\0\0\0teXt" + bytes(4)) * 1_000_000,
    "60 MB of C2PA": lambda: manifests.in_png(encode("PNG"), manifests.box(b"jumb", b"\0\0\0\x08free" * 7_500_000)),
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_blocks_cost_little(name):
    data = HUGE[name]()
    start = time.process_time()
    found = read_findings(data)
    assert time.process_time() - start < 5
    assert 1 <= len(found) <= MAX_FINDINGS and all(len(block.content) <= 8 << 20 for block in read_blocks(data))
    assert MAX_BLOCK_BYTES < 1 << 20


def test_values_are_one_short_line():
    finding = read_findings(png(parameters="\x1b[31m" + PARAMETERS + "x" * 5000))[0]
    assert len(finding["value"]) == MAX_VALUE and finding["value"].endswith("…") and finding["value"].isprintable()


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"\x18\x64", 100),
        (b"\x39\x03\xe7", -1000),
        (b"\xfb\x3f\xf8" + bytes(6), 1.5),
        (b"\x5f\x41a\x41b\xff", b"ab"),
        (b"\xbf\x61a\x9f\xf5\xf6\xff\xff", {"a": [True, None]}),
        (b"\xc2\x41\1", b"\1"),
    ],
)
def test_cbor(data, value):
    assert decode_cbor(data) == value
    for cut in range(len(data)):
        with pytest.raises(ValueError):
            decode_cbor(data[:cut])


def test_a_store_without_manifests_is_damaged():
    with pytest.raises(ValueError, match="no manifest"):
        read_credentials(b"")
