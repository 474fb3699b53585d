"""Decompression with Kafka's codecs. Each codec stops at a size limit before it allocates more memory."""

import struct
import zlib
from collections.abc import Callable

import lz4.frame
import snappy
import zstandard

XERIAL_MAGIC = b"\x82SNAPPY\x00"
XERIAL_HEADER_BYTES = 16
# Producers write blocks of 32 KiB. A large number of empty blocks would take time but no memory.
MAX_SNAPPY_BLOCKS = 65_536


class TooLargeError(ValueError):
    pass


def decompress(codec: int, data: bytes, max_bytes: int) -> bytes:
    """Decompress the payload of a record batch; `codec` is the batch's number for its codec (KIP-98).

    Needs no more memory than a small multiple of `max_bytes`. Raises ValueError when the payload is larger than
    `max_bytes` or damaged.
    """
    if codec == 0:
        return data
    try:
        return CODECS[codec](data, max_bytes)
    except TooLargeError:
        raise ValueError(f"its batch decompresses to more than {max_bytes} bytes") from None
    except KeyError:
        raise ValueError(f"its batch is compressed with the unknown codec {codec}") from None
    except (EOFError, RuntimeError, struct.error, zlib.error, zstandard.ZstdError, snappy.UncompressError) as error:
        raise ValueError(f"its batch cannot be decompressed ({type(error).__name__}: {error})") from None


def _bounded(data: bytes, max_bytes: int) -> bytes:
    if len(data) > max_bytes:
        raise TooLargeError
    return data


def _gzip(data: bytes, max_bytes: int) -> bytes:
    # Read only the first member, because producers write no others. Many members would take time but no memory.
    member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    out = _bounded(member.decompress(data, max_bytes + 1), max_bytes)
    if not member.eof:
        raise EOFError("it ends too early")
    return out


def _snappy(data: bytes, max_bytes: int) -> bytes:
    if not data.startswith(XERIAL_MAGIC):
        return _snappy_block(data, max_bytes)
    out, at = bytearray(), XERIAL_HEADER_BYTES
    for _ in range(MAX_SNAPPY_BLOCKS):
        if at >= len(data):
            return bytes(out)
        (size,) = struct.unpack_from(">I", data, at)
        at += 4
        out += _snappy_block(data[at : at + size], max_bytes - len(out))
        at += size
    raise EOFError("it has too many blocks")


def _snappy_block(data: bytes, max_bytes: int) -> bytes:
    # The block begins with its decompressed size, which the library would allocate at once.
    size = 0
    for i, byte in enumerate(data[:5]):
        size |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            break
    if size > max_bytes:
        raise TooLargeError
    out = snappy.uncompress(data)
    assert isinstance(out, bytes)
    return out


def _lz4(data: bytes, max_bytes: int) -> bytes:
    frame = lz4.frame.LZ4FrameDecompressor()
    out = _bounded(frame.decompress(data, max_length=max_bytes + 1), max_bytes)
    if not frame.eof:
        raise EOFError("it ends too early")
    return out


def _zstd(data: bytes, max_bytes: int) -> bytes:
    # The library itself refuses a frame whose window is over 128 MiB, the largest window of all levels.
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
        return _bounded(stream.read(max_bytes + 1), max_bytes)


CODECS: dict[int, Callable[[bytes, int], bytes]] = {1: _gzip, 2: _snappy, 3: _lz4, 4: _zstd}
