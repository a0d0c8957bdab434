"""Recordings of ROS 1 and ROS 2 in MCAP files: their topics, and their messages in the order of the file."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lapa.contracts import BadVideo
from lapa.data import ros
from lapa.data.arrays import CHUNK, guarded
from lapa.data.folders import printable, readable
from lapa.data.images import number_of

ENDING = ".mcap"


@dataclass(frozen=True)
class Bag:
    """A recording: its files, in order."""

    id: str
    files: tuple[Path, ...]

    @property
    def where(self) -> str:
        """What messages name it by."""
        return printable(self.files[0] if len(self.files) == 1 else self.files[0].parent)


@dataclass(frozen=True)
class Topic:
    """A topic of a recording: the type of its messages, their definitions, and how they are written. `problem` says
    why they cannot be read."""

    name: str
    type: str
    types: ros.Types = field(default_factory=dict)
    cdr: bool = True
    problem: str = ""

    def read(self, data: bytes, where: str) -> ros.Message:
        """A message. Raises BadVideo."""
        if self.problem:
            raise BadVideo(f"{where}: {self.name} {self.problem}")
        with guarded(f"{where}, {self.name}"):
            return ros.decoded(self.types, self.type, data, self.cdr)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(one.name for one in self.types.get(self.type, ()))

    @property
    def is_picture(self) -> bool:
        return "data" in self.fields and (
            {"encoding", "height", "width", "step"} <= self.fields or "format" in self.fields
        )


def recordings(root: Path, files: Sequence[Path]) -> list[Bag]:
    """Files of one folder with a metadata.yaml are one recording, any other is one by itself."""
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        whole = (file.parent / "metadata.yaml").exists()
        by_folder.setdefault(file.parent if whole else file, []).append(file)
    bags = []
    for where, parts in sorted(by_folder.items(), key=lambda item: (item[0].parent, number_of(item[0]))):
        within = where.relative_to(root).as_posix()
        name = root.name if within == "." else within.removesuffix(ENDING)
        bags.append(Bag(name, tuple(sorted(parts, key=number_of))))
    return bags


def _records(file: Path) -> Iterator[Any]:
    """The records of a file, those in chunks too, to its end. Raises BadVideo where it is damaged or breaks off."""
    from mcap.records import Chunk
    from mcap.stream_reader import StreamReader, breakup_chunk

    where = printable(file)
    reason = "cannot be read as MCAP; mcap recover saves what is whole"
    with guarded(where, reason), readable(file).open("rb") as opened:
        size = file.stat().st_size
        reader = StreamReader(opened, emit_chunks=True, validate_crcs=True, record_size_limit=size)
        for record in reader.records:
            if not isinstance(record, Chunk):
                yield record
                continue
            if record.uncompressed_size > CHUNK or _zipped(record) > CHUNK:
                raise BadVideo(f"{where}: a chunk says that it has {record.uncompressed_size} bytes.")
            yield from breakup_chunk(record, validate_crc=True)


def _zipped(chunk: Any) -> int:
    """Bytes that a chunk says it unpacks to, in its own header."""
    if chunk.compression != "zstd":
        return 0
    import zstandard

    return int(zstandard.frame_content_size(chunk.data))


def _channels(bag: Bag) -> Iterator[tuple[dict[int, Topic], Any]]:
    """Records with the topics by number, as far as they are known."""
    for file in bag.files:
        schemas, topics = dict[int, Any](), dict[int, Topic]()
        for record in _records(file):
            kind = type(record).__name__
            if kind == "Schema":
                schemas[record.id] = record
            elif kind == "Channel":
                topics[record.id] = _topic(record, schemas.get(record.schema_id))
            yield topics, record


def messages(bag: Bag) -> Iterator[tuple[Topic, float, bytes]]:
    """Topic, time of the recording in seconds and bytes of every message, in the order of the file."""
    for topics, record in _channels(bag):
        if type(record).__name__ == "Message":
            if record.channel_id not in topics:
                raise BadVideo(f"{bag.where}: a message is of no topic ({record.channel_id}).")
            yield topics[record.channel_id], record.log_time * 1e-9, record.data


def first_look(bag: Bag) -> tuple[dict[str, Topic], dict[str, str], dict[str, bytes]]:
    """The topics of a recording that have messages, by name; how the first picture of each is coded; and the first
    message of each."""
    topics, codings, firsts = dict[str, Topic](), dict[str, str](), dict[str, bytes]()
    for topic, _, data in messages(bag):
        if topic.name not in topics and topic.is_picture:
            message = topic.read(data, bag.where)
            codings[topic.name] = str(message.get("format", message.get("encoding", "")))
        firsts.setdefault(topic.name, data)
        topics[topic.name] = topic
    return dict(sorted(topics.items())), codings, firsts


def _topic(channel: Any, schema: Any) -> Topic:
    kind = ros.short(schema.name) if schema else ""
    coding = f"{channel.message_encoding}, {schema.encoding if schema else 'without a definition'}"
    if schema is None or (channel.message_encoding, schema.encoding) not in (("cdr", "ros2msg"), ("ros1", "ros1msg")):
        return Topic(channel.topic, kind, problem=f"is kept as {coding}; read are ROS 1 and ROS 2 messages.")
    try:
        types = ros.definitions(schema.name, schema.data.decode())
    except (ValueError, struct.error) as error:
        return Topic(channel.topic, kind, problem=f"has a definition that cannot be read ({error}).")
    return Topic(channel.topic, kind, types, channel.message_encoding == "cdr")
