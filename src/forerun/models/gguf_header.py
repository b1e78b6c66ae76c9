"""The header of a GGUF file: its metadata, and where each tensor lies.

The ``gguf`` package reads headers too, but it keeps a NumPy array for every string of the vocabulary: seconds of time
and hundreds of megabytes that a start-up can't spend. This one reads the same layout in one pass, and checks every
offset against the file's size, so that a cut-off file is named as such. The tensor types and the arithmetic of their
blocks stay the package's.

Reference:
    The GGUF specification in the ``ggml`` repository, versions 2 and 3.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from forerun.core.errors import ModelLoadError
from forerun.models.fields import Fields

GgufValue = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensorInfo:
    """Where a tensor lies and how it is stored.

    Attributes:
        shape: Rows first, as NumPy counts (GGUF stores the dimensions in the opposite order).
        type: Storage type of the blocks.
        offset_bytes: From the start of the file.
        num_bytes: Stored size.
    """

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset_bytes: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """Metadata and tensor directory of one file.

    Attributes:
        path: The file.
        metadata: Keys as the file spells them, such as ``llama.block_count``.
        tensors: By the file's tensor names, such as ``blk.0.attn_q.weight``.
    """

    path: Path
    metadata: Fields
    tensors: dict[str, GgufTensorInfo]


def read_header(path: Path) -> GgufHeader:
    """Read the header of ``path`` and check that every tensor lies inside the file.

    Raises:
        ModelLoadError: The file can't be opened, is no GGUF file, has an unknown version or tensor type, or is cut off.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(path, data).header()
    except FileNotFoundError as error:
        raise ModelLoadError(f"{path}: no such file; give the path of a .gguf file that exists") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ModelLoadError):
            raise
        raise ModelLoadError(f"{path}: can't be read as GGUF ({error}); download the file again") from error


class _Cursor:
    """Reads one value after another and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.offset = 0

    def header(self) -> GgufHeader:
        if self.take(4) != b"GGUF":
            raise ModelLoadError(
                f"{self.path}: starts with {bytes(self.data[:4])!r}, not b'GGUF'; it is no GGUF file or it is corrupt"
            )
        version = self.scalar("I")
        if version not in (2, 3):
            raise ModelLoadError(
                f"{self.path}: GGUF version {version}; versions 2 and 3 (little-endian) can be read; "
                "convert the model again with a current llama.cpp"
            )
        num_tensors, num_pairs = self.scalar("Q"), self.scalar("Q")
        metadata: dict[str, GgufValue] = {}
        for _ in range(num_pairs):
            key = self.string()
            metadata[key] = self.value(self.scalar("I"))
        directory = [self.tensor_entry() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise ModelLoadError(f"{self.path}: general.alignment={alignment!r}: must be a positive number of bytes")
        start = -(-self.offset // alignment) * alignment
        tensors = {
            name: self.placed(name, shape, type_id, start + offset) for name, shape, type_id, offset in directory
        }
        return GgufHeader(path=self.path, metadata=Fields(source=str(self.path), values=metadata), tensors=tensors)

    def take(self, num_bytes: int) -> bytes:
        end = self.offset + num_bytes
        if end > len(self.data):
            raise ModelLoadError(
                f"{self.path}: the header goes on to byte {end} but the file has {len(self.data)}: it is cut off or "
                "corrupt; download it again"
            )
        piece = self.data[self.offset : end]
        self.offset = end
        return piece

    def scalar(self, code: str) -> int:
        return self.unpack(code, 1)[0]

    def unpack(self, code: str, count: int) -> tuple:
        piece = self.take(count * struct.calcsize(f"<{code}"))
        return struct.unpack(f"<{count}{code}", piece)

    def string(self) -> str:
        raw = self.take(self.scalar("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelLoadError(
                f"{self.path}: a string before byte {self.offset} is not UTF-8: the file is corrupt; download it again"
            ) from error

    def strings(self, count: int) -> list[str]:
        """Read what ``count`` calls of :meth:`string` would: a vocabulary has a hundred thousand of them."""
        data, offset, size = self.data, self.offset, len(self.data)
        texts: list[str] = []
        for _ in range(count):
            start = offset + 8
            end = start + int.from_bytes(data[offset:start], "little")
            if end > size:
                break
            try:
                texts.append(data[start:end].decode())
            except UnicodeDecodeError:
                break
            offset = end
        self.offset = offset
        while len(texts) < count:
            texts.append(self.string())  # says what is wrong with the first string that can't be read
        return texts

    def value(self, kind: int) -> GgufValue:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item_kind, count = self.scalar("I"), self.scalar("Q")
            if item_kind in _SCALARS:
                return list(self.unpack(_SCALARS[item_kind], count))
            if item_kind == _STRING:
                return self.strings(count)
            kind = item_kind
        raise ModelLoadError(
            f"{self.path}: metadata of unknown kind {kind} before byte {self.offset}: the file is corrupt or newer "
            "than this reader; download it again or convert it with llama.cpp"
        )

    def tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, num_dims = self.string(), self.scalar("I")
        if num_dims > _MAX_DIMS:
            raise ModelLoadError(
                f"{self.path}: tensor {name!r} has {num_dims} dimensions; at most {_MAX_DIMS} are allowed: the file "
                "is corrupt; download it again"
            )
        dims = self.unpack("Q", num_dims)
        return name, dims[::-1], self.scalar("I"), self.scalar("Q")

    def placed(self, name: str, shape: tuple[int, ...], type_id: int, offset_bytes: int) -> GgufTensorInfo:
        try:
            storage = GGMLQuantizationType(type_id)
        except ValueError as error:
            raise ModelLoadError(
                f"{self.path}: tensor {name!r} has the unknown type {type_id}; the file is corrupt or newer than "
                "the installed gguf package: use a file of type F16, Q8_0 or Q4_1"
            ) from error
        block_size, block_bytes = GGML_QUANT_SIZES[storage]
        num_values = 1
        for size in shape:
            num_values *= size
        if num_values % block_size or (shape and shape[-1] % block_size):
            raise ModelLoadError(
                f"{self.path}: tensor {name!r} of shape {shape} does not divide into {storage.name} blocks of "
                f"{block_size} values: the file is corrupt; download it again"
            )
        num_bytes = num_values // block_size * block_bytes
        if offset_bytes + num_bytes > len(self.data):
            raise ModelLoadError(
                f"{self.path}: tensor {name!r} ends at byte {offset_bytes + num_bytes} but the file has "
                f"{len(self.data)}: it is cut off; download it again"
            )
        return GgufTensorInfo(shape=shape, type=storage, offset_bytes=offset_bytes, num_bytes=num_bytes)
