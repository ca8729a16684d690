"""What an image file says about itself: generators, editing programs, cameras, Content Credentials.

Anybody can write or remove metadata, so findings are shown beside a verdict and never change it.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Iterator
from typing import Any, TypedDict

from PIL import Image

from datasets.listing.storage import UnreadableImage, read_bytes
from utils.metadata.blocks import MAX_BLOCK_BYTES, TIFF_TAGS, Block, read_blocks
from utils.metadata.credentials import read_credentials
from utils.metadata.verification import UNVERIFIED, verify_credentials

MAX_VALUE = 300  # characters
MAX_TEXT = 20_000  # characters of a text that are searched
MAX_FINDINGS = 40


class Finding(TypedDict):
    """One statement of a file: generator, source type, content credentials, software or camera; and where it stands."""

    what: str
    value: str
    where: str


_GENERATORS = re.compile(
    r"stable[ _-]?diffusion|\bsdxl|\bsd[ _-]?webui|midjourney|dall[-·. ]?e\b|chatgpt|gpt-4o|gpt[ -]image|openai"
    r"|adobe[ _]firefly|generative fill|google (?:generative )?ai\b|google gemini|nano banana|comfyui|automatic1111"
    r"|invoke ?ai|novelai|fooocus|swarmui|leonardo\.ai|\bflux(?:\.[12]|[ _.-]?(?:dev|pro|schnell|kontext))"
    r"|black[ _-]forest[ _-]labs|ideogram\.ai|bing image creator|\bgrok\b|stability[ _.-]ai|\brecraft|seedream"
    r"|qwen-image",
    re.IGNORECASE,
)
_PARAMETERS = re.compile(r"\bSteps: \d+.{0,400}\b(?:Sampler|CFG scale|Seed): ", re.DOTALL)  # AUTOMATIC1111 and its kin
_GRAPH = re.compile(r"^\s*(?:workflow|prompt)?:?\s*\{.{0,300}\"(?:class_type|nodes|inputs|last_node_id)\"", re.DOTALL)
_JOB = re.compile(r"\bJob ID: [0-9a-f]{8}-[0-9a-f-]{27}")
_PNG_KEYS = {  # texts that only such programs write
    "parameters": "Stable Diffusion parameters",
    "prompt": "generation prompt",
    "workflow": "ComfyUI workflow",
    "invokeai_metadata": "InvokeAI parameters",
    "sd-metadata": "InvokeAI parameters",
    "dream": "InvokeAI parameters",
    "fooocus_scheme": "Fooocus parameters",
    "generation_data": "generation parameters",
}
SOURCE_TYPES = {
    "trainedAlgorithmicMedia": "made by a generator",
    "compositeWithTrainedAlgorithmicMedia": "composite with generated parts",
    "compositeSynthetic": "composite with synthetic parts",
    "algorithmicMedia": "made by an algorithm",
    "algorithmicallyEnhanced": "enhanced by an algorithm",
    "digitalCapture": "taken with a camera",
    "computationalCapture": "taken with a camera, several frames merged",
    "humanEdits": "edited by a person",
    "digitalCreation": "drawn by a person",
}
# An attribute, or an element that may hold an rdf:Alt and rdf:li. Possessive quantifiers: hostile text costs no more.
_XMP = re.compile(
    r"(?<![/\w])(\w++):(CreatorTool|DigitalSourceType|Credit|AISystemUsed|Make|Model|Source|description)"
    r"(?:\s*+=\s*+(?:\"([^\"]{1,2000}+)\"|'([^']{1,2000}+)')"
    r"|[^>=]{0,200}+(?<!/)>\s*+(?:<[^/>][^>]{0,200}+>\s*+){0,3}+([^<]{1,2000}+)<)"
)
_MAKE, _MODEL, _EXIF_IFD, _USER_COMMENT = 0x010F, 0x0110, 0x8769, 0x9286


def read_findings(data: bytes) -> list[Finding]:
    """List what the bytes of an image file say about its origin, without decoding it; never raises.

    Each finding is listed once. A file that names no camera has the finding ``camera: none named``.
    """
    found: list[Finding] = []
    blocks = read_blocks(data)
    first = next((block for block in blocks if block.kind == "c2pa"), None)  # readers take no other
    for block in blocks:
        if block.kind == "c2pa":
            statements = _from_c2pa(block, data) if block is first else iter(())
        else:
            statements = _READERS[block.kind](block)
        for what, value, where in statements:
            finding = Finding(what=what, value=clean(value), where=where)
            if finding["value"] and finding not in found:
                found.append(finding)
    if not any(finding["what"] == "camera" for finding in found):
        found.append(Finding(what="camera", value="none named", where="file"))
    return found[:MAX_FINDINGS]


def add_findings(batches: Iterator[list[dict[str, Any]]], as_text: bool) -> Iterator[list[dict[str, Any]]]:
    """Add what the file of each picture says as its ``metadata``; rows with an ``error`` or of videos have none."""
    for rows in batches:
        path, found = "", []
        for row in rows:
            if "error" not in row and "track" not in row:
                if row["path"] != path:  # else another face in the same picture
                    path, found = row["path"], _findings_of(row["path"])
                row["metadata"] = findings_text(found) if as_text else found
        yield rows


def _findings_of(path: str) -> list[Finding]:
    try:
        return read_findings(read_bytes(path))
    except UnreadableImage:  # gone since it was scored
        return []


def findings_text(findings: list[Finding]) -> str:
    """Findings as one line, for a column of a table."""
    return "; ".join(f"{finding['what']}: {finding['value']} ({finding['where']})" for finding in findings)


def clean(text: str) -> str:
    """Text of a file in one line of at most MAX_VALUE characters, without control characters."""
    shown = "".join(character if character.isprintable() else " " for character in text[: 4 * MAX_VALUE])
    shown = " ".join(shown.split())
    return shown if len(shown) <= MAX_VALUE else shown[: MAX_VALUE - 1] + "…"


Statements = Iterator[tuple[str, str, str]]  # what, value, where


def _named(text: str, where: str) -> Statements:
    """A generator that a text names, or its parameters."""
    text = text[:MAX_TEXT]
    if _PARAMETERS.search(text):
        yield "generator", f"Stable Diffusion parameters: {text}", where
    elif _GRAPH.match(text):
        yield "generator", f"ComfyUI workflow: {text}", where
    elif _JOB.search(text):
        yield "generator", f"Midjourney: {text}", where
    elif _GENERATORS.search(text):
        yield "generator", text, where


def _program(text: str, where: str, is_software: bool) -> Statements:
    """A generator that a text names; otherwise the text, if it stands where programs write their name."""
    named = [*_named(text, where)]
    yield from named or ([("software", text, where)] if is_software else [])


def _from_text(block: Block) -> Statements:
    text, where = block.content[: 4 * MAX_TEXT].decode("utf-8", "replace"), f"{block.where} {block.name}"
    named = [*_named(text, where)]
    if block.where == "PNG text" and not named and block.name.lower() in _PNG_KEYS:
        named = [("generator", f"{_PNG_KEYS[block.name.lower()]}: {text}", where)]
    yield from named or (_program(text, where, True) if block.name == "Software" else ())


def _from_exif(block: Block) -> Statements:
    exif = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damage
            exif.load(block.content[:MAX_BLOCK_BYTES])
            tags = dict(exif)
            comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT, b"")
    except Exception:  # Pillow raises many types on a damaged block
        return
    for number, name in TIFF_TAGS.items():
        text = tags.get(number)
        if isinstance(text, str) and number not in (_MAKE, _MODEL):
            yield from _program(text, f"{block.where} {name}", name == "Software")
    if isinstance(comment, bytes):
        yield from _named(_decode_comment(comment), f"{block.where} UserComment")
    make, model = (str(tags.get(number, "")).strip(" \0") for number in (_MAKE, _MODEL))
    graphs = [statement for text in (make, model) for statement in _named(text, f"{block.where} Make, Model")]
    yield from graphs
    if (make or model) and not graphs:  # ComfyUI writes its workflow there
        yield "camera", model if model.startswith(make) else f"{make} {model}", f"{block.where} Make, Model"


def _decode_comment(comment: bytes) -> str:
    """Text of an EXIF UserComment, which names its character set in the first 8 bytes."""
    start, text = comment[:8], comment[8:]
    if start == b"UNICODE\0":  # of either byte order, whatever that of the block
        return text.decode("utf-16-le" if text[1:2] == b"\0" else "utf-16-be", "replace")
    return (text if start in (b"ASCII\0\0\0", bytes(8)) else comment).decode("utf-8", "replace")


def _from_xmp(block: Block) -> Statements:
    camera: dict[str, str] = {}
    for prefix, name, *values in _XMP.findall(block.content[:MAX_BLOCK_BYTES].decode("utf-8", "replace")):
        text, where = html.unescape("".join(values)), f"{block.where} {name}"
        if name == "DigitalSourceType":
            yield from _source_type(text, where)
        elif name in ("Make", "Model"):
            if prefix == "tiff":
                camera[name] = text
        else:
            yield from _program(text, where, name == "CreatorTool")
    if camera:
        yield "camera", " ".join(camera.values()), f"{block.where} Make, Model"


def _source_type(text: str, where: str) -> Statements:
    term = text.strip().rstrip("/").rpartition("/")[2]
    yield "source type", f"{term}, {SOURCE_TYPES[term]}" if term in SOURCE_TYPES else term, where


def _from_iptc(block: Block) -> Statements:
    """Texts of the IPTC record in a Photoshop block: program, credit, source and caption."""
    for match in re.finditer(rb"\x1c\x02([\x41\x6e\x73\x78])(..)", block.content[:MAX_BLOCK_BYTES], re.DOTALL):
        text = block.content[match.end() : match.end() + int.from_bytes(match[2], "big")].decode("utf-8", "replace")
        yield from _program(text, block.where, match[1] == b"\x41")


def _from_c2pa(block: Block, data: bytes) -> Statements:
    state = verify_credentials(data)
    try:
        manifests = read_credentials(block.content)
    except ValueError as error:
        yield "content credentials", f"C2PA block, damaged ({error}); {UNVERIFIED}", block.where
        return
    for number, manifest in enumerate(manifests, 1):
        where = f"{block.where}, manifest {number} of {len(manifests)}" if len(manifests) > 1 else block.where
        checked = state if number == len(manifests) else UNVERIFIED  # the last one is the active one
        yield "content credentials", f"claim by {manifest.claim_generator or 'an unnamed program'}; {checked}", where
        for name in (manifest.claim_generator, *manifest.agents):
            yield from _named(name, where)
        for term in manifest.source_types:
            yield from _source_type(term, where)


_READERS = {"text": _from_text, "exif": _from_exif, "xmp": _from_xmp, "iptc": _from_iptc}
