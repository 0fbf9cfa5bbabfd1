"""Which formats there are, and which one a file has, told by its first bytes. Torch-free, standard library only."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from app.errors import InputRefused
from app.limits import Limits, shown
from app.safetensors_header import PACKED, SafetensorsHeader, parse_safetensors_header

__all__ = ["FORMATS", "HEAD_BYTES", "Format", "Limits", "SafetensorsHeader", "catalogue", "header_bytes_needed", "parse_safetensors_header", "sniff"]


@dataclass(frozen=True)
class Format:
    """A row of the catalogue: whether a job takes it as input, whether a job makes it, and which programs open it."""

    name: str
    reads: bool
    writes: bool
    loaders: tuple[str, ...]
    about: str


FORMATS = (
    Format("safetensors", True, True, ("safetensors", "transformers"), "One file, or a Hugging Face folder of them with config.json and an index."),
    Format("packed", True, True, ("modelpress restore", "python -m worker"), "Entropy-coded planes, masks and codes in one safetensors file."),
    Format("compressed-tensors", True, True, ("transformers", "vLLM"), "A Hugging Face folder with quantized weights and scale factors."),
    Format("pt2", True, True, ("torch.export",), "A program as torch.export.save writes it (torch 2.11 to 2.13), checked and rewritten before it is loaded."),
    Format("torch", True, False, ("torch",), "A PyTorch checkpoint (.pt .pth .bin .ckpt) as torch.save writes it since 1.6."),
    Format("zip", True, False, (), "An archive of a Hugging Face folder; members stored or deflated."),
    Format("tar", True, False, (), "An archive of a Hugging Face folder; plain or gzip."),
    Format("text", True, False, (), "Calibration data or labels: lines (.txt), JSONL (.jsonl) or token ids (.json)."),
    Format("numpy", True, False, (), "Calibration data or labels: arrays by input name (.npz), or one array (.npy)."),
    Format("image", True, False, ("any viewer",), "An image, or a folder of them: JPEG, PNG, WebP, AVIF, JPEG XL, GIF, BMP, TIFF (one frame each)."),
    Format("images", True, True, ("any viewer", "modelpress restore"), "Coded images under their own names and folders (.jpg .png .webp .avif .jxl), and an index."),
    Format("codec", True, True, ("modelpress",), "A codec that was trained on images, which jobs on others name: modelpress.codec and an index."),
    Format("figures", False, True, ("any reader of JSON",), "What a test has measured: figures.json."),
    Format("parquet", True, False, (), "A data set: a table (.parquet)."),
    Format("arrow", True, False, (), "A data set: a table as Arrow IPC file or Feather 2 (.arrow .feather)."),
    Format("csv", True, False, (), "A data set: a table as text (.csv .tsv)."),
    Format("dataset", True, True, ("modelpress restore",), "A data set's coded files under their own names and folders, and an index."),
    Format("file", True, False, (), "A file that goes beside weights when a folder is composed: config.json, a tokenizer, a licence."),
    Format("original", False, True, (), "What was uploaded, as restore gives it back."),
)

DATA = {".txt": "text", ".jsonl": "text", ".json": "text", ".npz": "numpy", ".npy": "numpy"}
"""Formats of data sets by suffix."""
DATASETS = {".npz": "numpy", ".npy": "numpy", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".csv": "csv", ".tsv": "csv"}
"""Formats of what jobs on data sets take, by suffix; .zip of them too."""
KINDS = ("model", "gradients", "calibration", "images", "dataset")
DATA_KINDS = ("calibration", "dataset")
_IMAGES = {
    ".png": (b"\x89PNG\r\n\x1a\n",), ".jpg": (b"\xff\xd8\xff",), ".jpeg": (b"\xff\xd8\xff",), ".gif": (b"GIF87a", b"GIF89a"), ".bmp": (b"BM",),
    ".webp": (b"RIFF",), ".tif": (b"II*\0", b"MM\0*"), ".tiff": (b"II*\0", b"MM\0*"), ".jxl": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"), ".avif": (b"",),
}  # fmt: skip
"""How images begin, by suffix. AVIF has `ftyp` at byte 4, WebP `WEBP` at byte 8."""
IMAGES = tuple(_IMAGES)
"""Suffixes of images."""
READ = "safetensors, PyTorch checkpoints (.pt .pth .bin .ckpt), programs of torch.export (.pt2), and zip, tar or tar.gz archives of a model folder"
TORCH = (".pt", ".pth", ".bin", ".ckpt")
TAR = (".tar", ".tar.gz", ".tgz")
_BESIDE = frozenset(".json .jsonl .txt .md .model .jinja .yaml .yml .toml .cfg .py .tiktoken .vocab .bpe .spm .csv .gitattributes".split())
_BESIDE_NAMES = ("license", "notice", "readme", "merges", "vocab", "gitattributes", "gitignore")
_OTHER = {
    ".onnx": "ONNX", ".gguf": "GGUF", ".ggml": "GGML", ".npy": "numpy", ".npz": "numpy", ".pb": "TensorFlow", ".h5": "Keras", ".keras": "Keras",
    ".tflite": "TensorFlow Lite", ".msgpack": "Flax", ".pkl": "a pickle", ".pickle": "a pickle", ".joblib": "joblib",
    ".7z": "7-Zip", ".rar": "RAR", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard", ".gz": "gzip",
} | dict.fromkeys(IMAGES, "an image (kind=images)")  # fmt: skip
"""Suffixes of what is not read as a model, for a clear answer."""
_MAGIC = {
    b"\x7fELF": "an ELF program", b"MZ": "a Windows program", b"GGUF": "GGUF", b"\x93NUMPY": "numpy", b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image", b"\x89HDF": "HDF5", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard", b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR", b"%PDF": "PDF", b"%!PS": "PostScript", b"<html": "HTML", b"<!DOC": "HTML", b"<!doc": "HTML",
}  # fmt: skip

INDEX = "modelpress.json"
"""The file at the root of a result that is no model, which says what it is (`app.made`)."""
_ENOUGH = 512  # a tar's magic stands at byte 257
HEAD_BYTES = 8 + Limits().safetensors_header_bytes
"""No more than this is ever needed by `sniff`."""


def catalogue() -> list[dict]:
    """FORMATS as JSON."""
    return [asdict(f) for f in FORMATS]


def header_bytes_needed(first8: bytes) -> int:
    """How many leading bytes of a file `sniff` needs (fewer when the file is shorter): a safetensors header, if they can announce one."""
    announced = 8 + int.from_bytes(first8[:8], "little")
    return max(_ENOUGH, announced) if len(first8) >= 8 and announced <= HEAD_BYTES else _ENOUGH


def is_zip(head: bytes) -> bool:
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def is_pickle(head: bytes) -> bool:
    """Protocol 2 and later announce themselves."""
    return len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar" or head[:2] == b"\x1f\x8b"


def is_torch_zip(head: bytes) -> bool:
    """torch.save writes `<root>/data.pkl` first."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head[:4] == b"PK\x03\x04" and name.endswith(b"/data.pkl")


def is_program_zip(head: bytes) -> bool:
    """torch.export.save writes weights, constants or the program first, below one root."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    first = (b"data/weights/", b"data/constants/", b"data/aotinductor/", b"models/", b"archive_format")
    return head[:4] == b"PK\x03\x04" and name.partition(b"/")[2].startswith(first)


def looks_safetensors(head: bytes, size: int) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") <= size


def suffix(name: str) -> str:
    """The lower-case suffix; `.tar.gz` is one."""
    found = re.search(r"(\.tar\.gz|\.[a-z0-9]+)$", name.lower())
    return found[1] if found else ""


def detect(name: str) -> str:
    """The kind of an upload whose kind is not told, by its suffix: an image is `images`, arrays and tables are a `dataset`, all else is `model`. Whether the content
    agrees `sniff` says.

    An archive may hold anything, so images or data in one are told by `kind=images` or `kind=dataset`; so is a .csv, which may lie beside weights.
    """
    end = suffix(name)
    return "images" if end in IMAGES else "dataset" if end in DATASETS and end not in _BESIDE else "model"


def sniff(name: str, head: bytes, size: int, limits: Limits = Limits(), kind: str = "model") -> str:
    """The format of a file: a name of FORMATS.

    Args:
        name: as the user gave it; its suffix must agree with the content.
        kind: what it is to be used as.
        head: the first `header_bytes_needed` bytes, or all of a shorter file.
        size: of the whole file, bytes.

    Raises:
        InputRefused: unsupported-format, kind-mismatch, lfs-pointer, invalid-torch, invalid-archive, or what `parse_safetensors_header` raises.
    """
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise InputRefused(
            "lfs-pointer", f"{shown(name)} is a git-lfs pointer of {size} bytes, not the file itself; run `git lfs pull` and upload again"
        )
    end = suffix(name)
    if kind == "dataset" and (end in DATASETS or end == ".zip" or name == INDEX):
        return _dataset(name, end, head, size)
    if kind in DATA_KINDS:
        return _data(name, end, head, size)
    if kind == "images":
        return _image(name, end, head, size)
    if kind == "gradients" and not looks_safetensors(head, size):
        raise InputRefused("unsupported-format", f"{shown(name)} is no safetensors file; gradients are tensors under the names of the model's, in safetensors")
    named = end in (*TORCH, *TAR, ".zip", ".pt2", *_OTHER, *_BESIDE)
    if end == ".safetensors" or (not named and looks_safetensors(head, size)):
        return "packed" if parse_safetensors_header(head, size, limits).metadata.get("format") == PACKED else "safetensors"
    if end in TORCH:
        return _torch(name, head, size)
    if end == ".pt2":
        return _program(name, head, size)
    if end == ".zip" and not is_program_zip(head):
        return "torch" if is_torch_zip(head) else _archive("zip", name, head, size)
    if end in TAR:
        return _archive("tar", name, head, size)
    if end in _OTHER:
        raise InputRefused("unsupported-format", f"{shown(name)} is named like {_OTHER[end]}, which is not read; read are {READ}")
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise InputRefused("unsupported-format", f"{shown(name)} is {what}, which is not read; read are {READ}")
    if is_zip(head) or is_pickle(head) or is_tar(head):
        if is_program_zip(head):
            raise InputRefused("kind-mismatch", f"{shown(name)} is a program of torch.export; name it .pt2")
        return "torch" if is_torch_zip(head) or is_pickle(head) else "zip" if is_zip(head) else "tar"
    if end in _BESIDE or name.lower().rsplit("/", 1)[-1].split(".")[0] in _BESIDE_NAMES:
        return "file"
    raise InputRefused("unsupported-format", f"{shown(name)} has no known format; read are {READ}")


def _image(name: str, end: str, head: bytes, size: int) -> str:
    """The format of images: one, or an archive of them."""
    if end == ".zip" or end in TAR:
        return _archive("zip" if end == ".zip" else "tar", name, head, size)
    if name == INDEX:
        return "codec" if b'"format": "codec"' in head[:64] else "images"
    if end not in _IMAGES:
        return "file"  # beside images in a folder: it is carried as it is
    fits = head.startswith(_IMAGES[end]) and {".webp": head[8:12] == b"WEBP", ".avif": head[4:8] == b"ftyp"}.get(end, True)
    if not fits:
        what = "empty" if size == 0 else "something else"
        raise InputRefused("invalid-image", f"{shown(name)} is named like {end[1:]}, and its content is {what}")
    return "image"


def _data(name: str, end: str, head: bytes, size: int) -> str:
    """The format of a data set, by its suffix; the content must not contradict it."""
    if (found := DATA.get(end)) is None:
        raise InputRefused("unsupported-format", f"{shown(name)} is no data set that is read; read are {', '.join(DATA)}")
    if size == 0:
        raise InputRefused("invalid-calibration", f"{shown(name)} is empty")
    fits = {".npz": is_zip(head), ".npy": head.startswith(b"\x93NUMPY")}.get(end, b"\0" not in head)
    if not fits:
        raise InputRefused("kind-mismatch", f"{shown(name)} is named like {end[1:]}, and its content is something else")
    return found


def _dataset(name: str, end: str, head: bytes, size: int) -> str:
    """The format of what a job on data sets takes; the content must not contradict the name."""
    if name == INDEX:
        return "dataset"
    if end == ".zip":
        return _archive("zip", name, head, size)
    if size == 0:
        raise InputRefused("invalid-numpy" if end in (".npy", ".npz") else "invalid-table", f"{shown(name)} is empty")
    begins = {".npz": is_zip(head), ".npy": head.startswith(b"\x93NUMPY"), ".parquet": head.startswith((b"PAR1", b"PARE")), ".arrow": head.startswith(b"ARROW1"), ".feather": head.startswith((b"ARROW1", b"FEA1"))}
    if is_pickle(head):
        raise InputRefused("unsafe-pickle", f"{shown(name)} is a pickle, which is never read here")
    if not begins.get(end, b"\0" not in head):
        raise InputRefused("kind-mismatch", f"{shown(name)} is named like {end[1:]}, and its content is something else")
    return DATASETS[end]


def _program(name: str, head: bytes, size: int) -> str:
    if is_zip(head) and not is_torch_zip(head):
        return "pt2"
    if is_torch_zip(head) or looks_safetensors(head, size):
        what = "safetensors" if looks_safetensors(head, size) else "a PyTorch checkpoint (.pt)"
        raise InputRefused("kind-mismatch", f"{shown(name)} is named like a program of torch.export, and holds {what}; rename it")
    raise InputRefused("invalid-pt2", f"{shown(name)} is {'empty' if size == 0 else 'no zip'}: not what torch.export.save writes")


def _torch(name: str, head: bytes, size: int) -> str:
    if is_program_zip(head):
        raise InputRefused("kind-mismatch", f"{shown(name)} is a program of torch.export; rename it to .pt2")
    if looks_safetensors(head, size):
        raise InputRefused("kind-mismatch", f"{shown(name)} holds safetensors; rename it to .safetensors")
    if is_zip(head) or is_pickle(head) or head[257:262] == b"ustar":
        return "torch"
    if size == 0:
        raise InputRefused("invalid-torch", f"{shown(name)} is empty")
    what = next((w for m, w in _MAGIC.items() if head.startswith(m)), "neither a zip nor a pickle")
    what = "gzip; unpack it first" if head[:2] == b"\x1f\x8b" else what
    raise InputRefused("invalid-torch", f"{shown(name)} is named like a PyTorch checkpoint, but its content is {what}")


def _archive(kind: str, name: str, head: bytes, size: int) -> str:
    if size == 0:
        raise InputRefused("invalid-archive", f"{shown(name)} is empty")
    if (kind == "zip" and is_tar(head)) or (kind == "tar" and is_zip(head)) or looks_safetensors(head, size):
        raise InputRefused("kind-mismatch", f"{shown(name)} is named like a {kind} archive and is something else; rename it")
    return kind
