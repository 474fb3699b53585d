"""Mutations of a JPEG or PNG, from single bits to parts of another file with correct checksums."""

import struct
import zlib
from collections.abc import Callable
from random import Random

PNG_START = b"\x89PNG\r\n\x1a\n"
SIDES_PX = (0, 1, 2, 7, 28, 255, 256, 4096, 16_384, 16_385, 65_535, 2**24, 2**31 - 1, 2**32 - 1)
LENGTHS = (0, 1, 2, 3, 255, 65_535, 2**31 - 1, 2**32 - 1)
KINDS = (
    b"IHDR",
    b"PLTE",
    b"IDAT",
    b"IEND",
    b"tRNS",
    b"sBIT",
    b"eXIf",
    b"iCCP",
    b"zTXt",
    b"acTL",
    b"fdAT",
    b"abCD",
    b"ABCD",
)
MARKERS = (*range(0xC0, 0xD0), *range(0xD8, 0xE3), 0xED, 0xEE, 0xF7, 0xFE, 0x01, 0x00)
SMALL_PX = 64
"""Claims up to this give images that are decoded, not refused for their size."""

Mutation = Callable[[bytes, list[bytes], Random], bytes]


def mutated(images: list[bytes], random: Random) -> bytes:
    """Return one of the images after one to three mutations."""
    image = random.choice(images)
    for _ in range(random.choice((1, 1, 2, 3))):
        own = PNG_MUTATIONS if image.startswith(PNG_START) else JPEG_MUTATIONS
        image = random.choice(own if random.random() < 0.6 else ANY_MUTATIONS)(image, images, random)
    # A wrong checksum is all that is seen of most damage to a PNG.
    return with_right_checksums(image) if image.startswith(PNG_START) and random.random() < 0.7 else image


def flip_bits(image: bytes, _: list[bytes], random: Random) -> bytes:
    changed = bytearray(image)
    for _flip in range(random.choice((1, 1, 2, 8)) if image else 0):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def change_bytes(image: bytes, _: list[bytes], random: Random) -> bytes:
    place = random.randint(0, len(image))
    new = random.choice((random.randbytes(random.choice((1, 2, 4, 64))), b"\xff" * 16, bytes(16)))
    return image[:place] + new + image[place + len(new) :]


def truncate(image: bytes, _: list[bytes], random: Random) -> bytes:
    return image[: random.choice((random.randint(0, len(image)), max(0, len(image) - random.randint(1, 40))))]


def insert(image: bytes, _: list[bytes], random: Random) -> bytes:
    place = random.randint(0, len(image))
    return image[:place] + random.randbytes(random.choice((1, 2, 3, 100))) + image[place:]


def remove(image: bytes, _: list[bytes], random: Random) -> bytes:
    place = random.randint(0, len(image))
    return image[:place] + image[place + random.choice((1, 2, 3, 100)) :]


def repeat(image: bytes, _: list[bytes], random: Random) -> bytes:
    start, end = sorted(random.randint(0, len(image)) for _end in range(2))
    return image[:end] + image[start:end] * random.choice((1, 2, 50)) + image[end:]


def cross(image: bytes, images: list[bytes], random: Random) -> bytes:
    other = random.choice(images)
    return image[: random.randint(0, len(image))] + other[random.randint(0, len(other)) :]


def number(image: bytes, _: list[bytes], random: Random) -> bytes:
    """A length anywhere."""
    place = random.randint(0, len(image))
    format_ = random.choice((">I", ">H", "<I"))
    value = random.choice(LENGTHS) % 2 ** (8 * struct.calcsize(format_))
    return image[:place] + struct.pack(format_, value) + image[place + struct.calcsize(format_) :]


def on_chunks(change: Callable[[list[tuple[bytes, bytes]], list[bytes], Random], None]) -> Mutation:
    """A mutation of a PNG's chunks (kind, data), after which their lengths and checksums are right."""

    def mutate(image: bytes, images: list[bytes], random: Random) -> bytes:
        chunks = chunks_of(image)
        change(chunks, images, random)
        return png_of(chunks)

    return mutate


def with_right_checksums(image: bytes) -> bytes:
    return png_of(chunks_of(image))


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return PNG_START + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def chunks_of(image: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], len(PNG_START)
    while place + 12 <= len(image):
        (length,) = struct.unpack_from(">I", image, place)
        chunks.append((image[place + 4 : place + 8], image[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def change_png_header(chunks: list[tuple[bytes, bytes]], _: list[bytes], random: Random) -> None:
    if chunks and len(chunks[0][1]) == 13:
        fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        field = random.randrange(7)
        values = SIDES_PX if field < 2 else (0, 1, 2, 3, 4, 6, 8, 16, 255)
        fields[field] = random.choice((random.choice(values), random.randint(0, SMALL_PX)))
        chunks[0] = (chunks[0][0], struct.pack(">IIBBBBB", *fields))


def change_chunks(chunks: list[tuple[bytes, bytes]], images: list[bytes], random: Random) -> None:
    if chunks:
        kind, data = chunks[place := random.randrange(len(chunks))]
        others = chunks_of(random.choice(images)) or chunks
        chunks[place : place + 1] = random.choice(
            (
                [],
                [(kind, data), (kind, data)],
                [(random.choice(KINDS), data)],
                [(kind, flip_bits(data, [], random))],
                [(kind, truncate(data, [], random))],
                [random.choice(others), (kind, data)],
                [random.choice(others)],
                [
                    (kind, data),
                    (random.choice(KINDS), random.randbytes(random.choice((0, 1, 2, 3, 4, 6, 13, 26, 768)))),
                ],
                [(kind, data[i : i + 3]) for i in range(0, min(len(data), 6_000), 3)],
            )
        )


def change_rows(chunks: list[tuple[bytes, bytes]], _: list[bytes], random: Random) -> None:
    """Damage what is compressed, under a right checksum."""
    for place, (kind, data) in enumerate(chunks):
        if kind == b"IDAT":
            try:
                rows = zlib.decompressobj().decompress(data, 1_000_000)
            except zlib.error:
                continue
            change = random.choice((flip_bits, change_bytes, truncate, insert, remove, repeat))
            chunks[place] = (kind, zlib.compress(change(rows, [], random), 1))


def on_segments(change: Callable[[list[bytes], list[bytes], Random], None]) -> Mutation:
    """Return a mutation of a JPEG's segments. Everything after the header of the first scan is one segment."""

    def mutate(image: bytes, images: list[bytes], random: Random) -> bytes:
        segments = segments_of(image)
        change(segments, images, random)
        return b"".join(segments)

    return mutate


def segments_of(image: bytes) -> list[bytes]:
    segments, place = [image[:2]], 2
    while place + 4 <= len(image) and image[place] == 0xFF and image[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(image[place + 2 : place + 4], "big")
        segments.append(image[place:end])
        place = end
    return [*segments, image[place:]]


def segment(random: Random) -> bytes:
    data = random.choice((b"", b"Exif\0\0II*\0", b"Adobe\0\x64\0\0\0\0", b"JFIF\0", b"ICC_PROFILE\0"))
    data += random.randbytes(random.choice((0, 1, 2, 14, 64, 300)))
    return struct.pack(">BBH", 0xFF, random.choice(MARKERS), len(data) + 2) + data


def change_jpeg_header(segments: list[bytes], _: list[bytes], random: Random) -> None:
    for place, found in enumerate(segments):
        if len(found) > 10 and found[0] == 0xFF and 0xC0 <= found[1] <= 0xC2:
            changed = bytearray(found)
            if random.random() < 0.5:
                at = random.choice((5, 7))
                changed[at : at + 2] = struct.pack(">H", random.choice((*SIDES_PX[:11], random.randint(0, SMALL_PX))))
            else:
                at = random.randrange(4, len(changed))
                changed[at] = random.choice((0, 1, 2, 3, 4, 0x11, 0x12, 0x21, 0x22, 0x41, 0x44, 255, changed[at] ^ 1))
            segments[place] = bytes(changed)


def change_segments(segments: list[bytes], images: list[bytes], random: Random) -> None:
    old = segments[place := random.randrange(len(segments))]
    other = random.choice(segments_of(random.choice(images)))
    segments[place : place + 1] = random.choice(
        (
            [],
            [old, old],
            [old] * 40,
            [old, segment(random)],
            [old, other],
            [other],
            [flip_bits(old, [], random)],
            [old[:1] + bytes([random.choice(MARKERS)]) + old[2:]],
            [truncate(old, [], random)],
        )
    )


def change_scans(segments: list[bytes], _: list[bytes], random: Random) -> None:
    """Damage, drop, repeat or mix what is between the markers of the scans."""
    parts = segments[-1].split(b"\xff\xda")
    place = random.randrange(len(parts))
    change = random.choice((flip_bits, change_bytes, truncate, insert, remove, repeat))
    parts[place : place + 1] = random.choice(
        ([], [parts[place]] * 2, [parts[place]] * 40, [change(parts[place], [], random)], [random.choice(parts)])
    )
    segments[-1] = b"\xff\xda".join(parts)


ANY_MUTATIONS: tuple[Mutation, ...] = (flip_bits, change_bytes, truncate, insert, remove, repeat, cross, number)
PNG_MUTATIONS = tuple(map(on_chunks, (change_png_header, change_chunks, change_rows)))
JPEG_MUTATIONS = tuple(map(on_segments, (change_jpeg_header, change_segments, change_scans)))
