"""A producer below the Python client: it sends names of headers that are no text at all."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

import confluent_kafka

from leaderboard.events import Record

_END, _TOPIC, _VALUE, _KEY, _FLAGS, _HEADER = 0, 1, 4, 5, 7, 9
"""`rd_kafka_vtype_t` of librdkafka's rdkafka.h."""
_PRODUCER, _COPY = 0, 2
FLUSH_MS: Final = 10_000


def _librdkafka() -> ctypes.CDLL:
    """The very library that the client came with."""
    package = Path(confluent_kafka.__file__).parent
    (found,) = package.with_name("confluent_kafka.libs").glob("librdkafka*.so*")
    library = ctypes.CDLL(str(found))
    library.rd_kafka_conf_new.restype = library.rd_kafka_new.restype = ctypes.c_void_p
    return library


def produce_raw(server: str, record: Record, name: bytes) -> None:
    """Send the record with one more header of this name, and wait until Kafka has it."""
    library, told = _librdkafka(), ctypes.create_string_buffer(512)
    config = ctypes.c_void_p(library.rd_kafka_conf_new())
    for key, text in (("bootstrap.servers", server), ("partitioner", "murmur2_random")):
        given = (key.encode(), text.encode(), told, ctypes.c_size_t(512))
        assert library.rd_kafka_conf_set(config, *given) == 0, told.value
    client = ctypes.c_void_p(library.rd_kafka_new(_PRODUCER, config, told, ctypes.c_size_t(512)))
    assert client.value, told.value
    sized = [_sized(_VALUE, record.value or b""), _sized(_KEY, record.key or b"")]
    sound = [(one.encode(), raw) for one, raw in record.headers]
    for header, raw in (*sound, (name, b"x")):
        sized.append([ctypes.c_int(_HEADER), ctypes.c_char_p(header), *_sized(0, raw or b"")[1:]])
    words = [ctypes.c_int(_TOPIC), ctypes.c_char_p(record.topic.encode())]
    words += [ctypes.c_int(_FLAGS), ctypes.c_int(_COPY), *(one for some in sized for one in some)]
    assert library.rd_kafka_producev(client, *words, ctypes.c_int(_END)) == 0
    assert library.rd_kafka_flush(client, FLUSH_MS) == 0
    library.rd_kafka_destroy(client)


def _sized(kind: int, raw: bytes) -> list[ctypes.c_int | ctypes.c_char_p | ctypes.c_size_t]:
    return [ctypes.c_int(kind), ctypes.c_char_p(raw), ctypes.c_size_t(len(raw))]
