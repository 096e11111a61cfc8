"""ZMTP 3.1 on the wire: greeting, frames, commands and the PLAIN mechanism's messages.

Pure functions without a socket. Sources: rfc.zeromq.org/spec/23 (ZMTP 3.0), spec/37
(ZMTP 3.1, which adds PING and PONG) and spec/24 (PLAIN). All sizes are in bytes, integers
are big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from face_restore_shared.errors import FaceRestoreError

GREETING_SIZE = 64
MECHANISM = b"PLAIN"
FLAG_MORE, FLAG_LONG, FLAG_COMMAND = 0x01, 0x02, 0x04
# Commands are small: a handshake's metadata or a heartbeat. More than this is an attack.
MAX_COMMAND = 64 * 1024
# What libzmq's PLAIN server really sends for b"\\x05ERROR": length and first letter have
# merged into one octet (seen with 4.3.5, whose C source has the escape "\\x5E...").
_LIBZMQ_ERROR = b"\x5eRROR"
_SIGNATURE = b"\xff" + bytes(8) + b"\x7f"


class ZmtpError(FaceRestoreError):
    """The conversation with the worker broke down."""

    default_code = "zmtp"


class ProtocolViolation(ZmtpError):
    """The peer sent something ZMTP 3.1 does not allow, or more than is accepted."""

    default_code = "zmtp-violation"


class AuthenticationRefused(ZmtpError):
    """The worker did not accept the token."""

    default_code = "authentication-refused"


@dataclass(frozen=True)
class FrameHeader:
    """What stands before a frame's body: its size and what kind it is."""

    size: int
    more: bool
    command: bool


def greeting() -> bytes:
    """The client's 64-byte greeting: version 3.1, mechanism PLAIN, not a server."""
    return _SIGNATURE + b"\x03\x01" + MECHANISM.ljust(20, b"\0") + b"\0" + bytes(31)


def check_greeting(data: bytes) -> None:
    """Check a server's greeting (64 bytes).

    Raises:
        ProtocolViolation: not ZMTP 3, or the mechanism is not PLAIN.
    """
    if len(data) != GREETING_SIZE or data[0] != 0xFF or not data[9] & 0x01:
        raise ProtocolViolation(
            "What answers on the worker's port does not speak ZMTP.",
            hint="Restart the worker with `face-restore worker restart`.",
        )
    if data[10] < 3:
        raise ProtocolViolation(f"The peer speaks ZMTP {data[10]}.{data[11]}; 3.0 is needed.")
    mechanism = bytes(data[12:32]).rstrip(b"\0")
    if mechanism != MECHANISM:
        raise ProtocolViolation(f"The peer asks for the mechanism {mechanism!r}, not PLAIN.")


def encode_header(size: int, *, more: bool = False, command: bool = False) -> bytes:
    """Flags and size of a frame: 2 bytes up to 255, else 9."""
    flags = (FLAG_MORE if more else 0) | (FLAG_COMMAND if command else 0)
    if size <= 255:
        return bytes((flags, size))
    return struct.pack(">BQ", flags | FLAG_LONG, size)


def header_length(flags: int) -> int:
    """Bytes a frame header has, by its first byte.

    Raises:
        ProtocolViolation: reserved bits are set, or a command claims to be continued.
    """
    if flags & ~(FLAG_MORE | FLAG_LONG | FLAG_COMMAND):
        raise ProtocolViolation(f"A frame has reserved bits set (flags {flags:#04x}).")
    if flags & FLAG_COMMAND and flags & FLAG_MORE:
        raise ProtocolViolation("A command frame claims to be continued.")
    return 9 if flags & FLAG_LONG else 2


def decode_header(data: bytes | bytearray | memoryview, max_frame: int) -> FrameHeader:
    """Decode a complete header; the size is checked here, before anything is allocated.

    Raises:
        ProtocolViolation: reserved bits, or a body larger than `max_frame` (MAX_COMMAND for
            commands).
    """
    flags = data[0]
    length = header_length(flags)
    size = data[1] if length == 2 else struct.unpack(">Q", bytes(data[1:9]))[0]
    command = bool(flags & FLAG_COMMAND)
    limit = MAX_COMMAND if command else max_frame
    if size > limit:
        raise ProtocolViolation(
            f"The peer announced a frame of {size} bytes; {limit} is the limit."
        )
    return FrameHeader(size=size, more=bool(flags & FLAG_MORE), command=command)


def encode_command(name: bytes, body: bytes = b"") -> bytes:
    """A whole command frame: header, name with its length, body."""
    payload = bytes((len(name),)) + name + body
    return encode_header(len(payload), command=True) + payload


def decode_command(payload: bytes | bytearray) -> tuple[bytes, bytes]:
    """Split a command frame's body into name and data.

    Raises:
        ProtocolViolation: the name is empty or longer than the frame.
    """
    if payload.startswith(_LIBZMQ_ERROR):
        return b"ERROR", bytes(payload[len(_LIBZMQ_ERROR) :])
    if not payload or payload[0] == 0 or payload[0] > len(payload) - 1:
        raise ProtocolViolation("A command frame is malformed.")
    end = 1 + payload[0]
    return bytes(payload[1:end]), bytes(payload[end:])


def hello(username: bytes, password: bytes) -> bytes:
    """PLAIN's HELLO command frame; each part at most 255 bytes."""
    if max(len(username), len(password)) > 255:
        raise ValueError("PLAIN carries at most 255 bytes of user name and of password")
    body = bytes((len(username),)) + username + bytes((len(password),)) + password
    return encode_command(b"HELLO", body)


def initiate(metadata: dict[str, bytes]) -> bytes:
    """PLAIN's INITIATE command frame with the client's metadata."""
    return encode_command(b"INITIATE", encode_metadata(metadata))


def encode_metadata(metadata: dict[str, bytes]) -> bytes:
    """Names with 1-byte lengths, values with 4-byte lengths."""
    parts = []
    for name, value in metadata.items():
        encoded = name.encode("ascii")
        parts.append(bytes((len(encoded),)) + encoded + struct.pack(">I", len(value)) + value)
    return b"".join(parts)


def decode_metadata(data: bytes) -> dict[str, bytes]:
    """Inverse of `encode_metadata`; names are lower-cased since they ignore case.

    Raises:
        ProtocolViolation: a length reaches past the end, or a name is not ASCII.
    """
    metadata: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        end = position + 1 + data[position]
        if data[position] == 0 or end + 4 > len(data):
            raise ProtocolViolation("The peer's metadata is malformed.")
        name = data[position + 1 : end]
        (size,) = struct.unpack(">I", data[end : end + 4])
        position = end + 4 + size
        if position > len(data) or not name.isascii():
            raise ProtocolViolation("The peer's metadata is malformed.")
        metadata[name.decode("ascii").lower()] = data[end + 4 : position]
    return metadata


def error_reason(data: bytes) -> str:
    """The reason inside an ERROR command's data; libzmq sends the ZAP status, such as 400."""
    if not data or data[0] > len(data) - 1:
        raise ProtocolViolation("The peer's ERROR command is malformed.")
    return data[1 : 1 + data[0]].decode("ascii", "replace")


def ping(ttl: float, context: bytes = b"") -> bytes:
    """A PING frame; context at most 16 bytes.

    ttl: seconds (sent in tenths) after which the peer may take a silent sender for gone; 0: never.
    """
    return encode_command(b"PING", struct.pack(">H", min(int(ttl * 10), 0xFFFF)) + context[:16])


def pong_for(ping_data: bytes) -> bytes:
    """The PONG frame that answers a PING's data: its context without the time to live.

    Raises:
        ProtocolViolation: the PING is too short, or its context longer than 16 bytes.
    """
    if not 2 <= len(ping_data) <= 18:
        raise ProtocolViolation("The peer's PING is malformed.")
    return encode_command(b"PONG", ping_data[2:])
