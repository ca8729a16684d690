"""Content Credentials: what the C2PA manifests in a file claim, read without checking any signature.

A manifest store is a tree of JUMBF boxes (ISO 19566-5): manifests, each with a claim and its assertions in CBOR. The
last manifest is the active one. Specification: C2PA 2.2, https://spec.c2pa.org.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from utils.metadata.cbor import decode_cbor

MAX_DEPTH = 6
MAX_BOXES = 5000
MAX_CBOR_BYTES = 1 << 16  # of one claim or list of actions
MAX_CBOR_BOXES = 50


class Credentials(NamedTuple):
    """What one manifest claims: the program that made the claim, programs that acted, IPTC terms of the source."""

    claim_generator: str
    agents: list[str]
    source_types: list[str]


def read_credentials(store: bytes) -> list[Credentials]:
    """Read the manifests of a C2PA store, oldest first. Raises ValueError for a store that is damaged."""
    manifests: dict[str, list[tuple[str, bytes]]] = {}
    for number, (path, content) in enumerate(_leaves(store, (), 0)):
        if number >= MAX_BOXES:
            raise ValueError("too many boxes")
        if len(path) < 3 or path[0] != "c2pa":
            continue
        boxes = manifests.setdefault(path[1], [])
        if path[-1].startswith(("c2pa.claim", "c2pa.actions")):
            boxes.append((path[-1], content))
    if not manifests:
        raise ValueError("no manifest")
    if sum(map(len, manifests.values())) > MAX_CBOR_BOXES or any(
        len(content) > MAX_CBOR_BYTES for boxes in manifests.values() for _, content in boxes
    ):
        raise ValueError("too many claims")
    return [_read_manifest(boxes) for boxes in manifests.values()]


def _leaves(data: bytes, path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """The CBOR boxes of a JUMBF tree, each with the labels of the boxes around it."""
    at, labels = 0, path
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size < 8 or at + size > len(data):
            raise ValueError("a box of a wrong size")
        body, at = data[at + 8 : at + size], at + size
        if kind == b"jumb":
            if depth > MAX_DEPTH:
                raise ValueError("too many boxes in boxes")
            yield from _leaves(body, labels, depth + 1)
        elif kind == b"jumd" and len(body) > 17 and body[16] & 2:  # the description of the box around it
            labels = (*path, body[17:200].partition(b"\0")[0].decode("utf-8", "replace"))
        elif kind == b"cbor":
            yield labels, body


def _read_manifest(boxes: list[tuple[str, bytes]]) -> Credentials:
    generator, agents, sources = "", [], []
    for label, content in boxes:
        if label.startswith("c2pa.claim"):
            claim = _as_map(decode_cbor(content))
            infos = claim.get("claim_generator_info")
            named = [_name(info) for info in (infos if isinstance(infos, list) else [infos])]
            generator = ", ".join(filter(None, named)) or _name(claim.get("claim_generator"))
        elif label.startswith("c2pa.actions"):
            actions = _as_map(decode_cbor(content)).get("actions")
            for action in map(_as_map, actions if isinstance(actions, list) else []):
                agents.append(_name(action.get("softwareAgent")))
                sources.append(_name(action.get("digitalSourceType")))
    return Credentials(generator, _unique(agents), _unique(sources))


def _as_map(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _name(value: Any) -> str:
    """The text of a name, or of a map with name and version."""
    if isinstance(value, dict):
        return " ".join(filter(None, (_name(value.get("name")), _name(value.get("version")))))
    return value if isinstance(value, str) else ""


def _unique(names: list[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, names)))
