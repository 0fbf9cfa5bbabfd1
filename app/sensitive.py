"""What the owner of a model may not want to publish: metadata that names people, paths or keys, and side files of training."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_SIDE_FILES = {
    r"training_args\.(bin|json)": "the arguments of a training run (host names, paths, keys)",
    r"(optimizer|scheduler|scaler)(_\d+)?\.(pt|bin|pth)": "state of the optimizer, which can tell about the training data",
    r"rng_state(_\d+)?\.pth": "state of random generators",
    r"trainer_state\.json|all_results\.json": "the log of a training run",
    r"events\.out\.tfevents\..*": "TensorBoard's log of a training run",
    r"\.git|\.gitconfig|\.gitmodules": "a git repository",
    r"wandb|runs|\.ipynb_checkpoints|__pycache__|\.idea|\.vscode|\.cache": "working files of a tool",
    r"\.env(\..*)?|\.netrc|\.npmrc|\.pypirc|id_(rsa|ed25519|ecdsa|dsa)|.*\.(pem|key|p12|pfx)|credentials|\.bash_history": "keys or credentials",
    r"__MACOSX|\._.*|\.DS_Store|Thumbs\.db|desktop\.ini": "files of a desktop system",
}
_ROOTS = "home|Users|root|mnt|data|tmp|var|opt|srv|scratch|workspace|content|gpfs|nfs|media|private|kaggle|storage|usr|etc"
_TEXT = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an access token": r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|AKIA[0-9A-Z]{16}|xox[abpr]-[\w-]{10,}"
    r"|glpat-[\w-]{15,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.|ASIA[0-9A-Z]{16}|AIza[\w-]{35}|ya29\.[\w-]{20,}|(?:sk|rk)_live_[0-9A-Za-z]{20,}|npm_[0-9A-Za-z]{36}"
    r"|pypi-AgE[\w-]{40,}|dckr_pat_[\w-]{20,}|SG\.[\w-]{20,}\.[\w-]{20,}|dop_v1_[0-9a-f]{60,}|r8_[0-9A-Za-z]{30,}|nvapi-[\w-]{40,}|mp_[\w-]{43}\b)"
    r"|hooks\.slack\.com/services/\w|(?:AccountKey|SharedAccessSignature)=[\w%+/=-]{20,}|(?i:aws_secret_access_key)\W{1,5}[A-Za-z0-9/+]{40}\b",
    "an e-mail address": r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}\b",
    "an absolute path": rf"(?:^|[\s\"'=:,(\[])(?:file://)?(?:/(?:{_ROOTS})/|[A-Za-z]:[\\/]|\\\\\w)|^~/\S",
    "an address of a machine": r"\b(?:s3|gs|ssh|hdfs|abfss?)://\S|\b\d{1,3}(?:\.\d{1,3}){3}:\d{2,5}\b|\b\w{1,16}://[^\s/@:]{1,64}:[^\s/@]{1,64}@",
}
_KEYS = re.compile(
    r"(?i)(?:^|[_.\- ])(?:user(?:name)?|author|owner|email|e-mail|host(?:name)?|password|passwd|secret|token|api[_-]?key|credential)s?(?:$|[_.\- ])"
)
_TOKENIZER = re.compile(r"(?i)(?:bos|eos|pad|unk|sep|cls|mask|special|image|audio|video)[\w\- ]*token|token[_ ]?(?:id|type)|max_?(?:new_)?tokens?")
_SIDE = [(re.compile(p), what) for p, what in _SIDE_FILES.items()]
_PATTERNS = [(re.compile(p, re.MULTILINE), what) for what, p in _TEXT.items()]
_SCANNED = 64 << 10  # characters of one value that are looked at


def side_file(path: str) -> str | None:
    return next((what for part in PurePosixPath(path).parts for pattern, what in _SIDE if pattern.fullmatch(part)), None)


def telling(key: str, value: str) -> str | None:
    """What a key and its value give away; None when nothing."""
    for pattern, what in _PATTERNS:
        if pattern.search(value[:_SCANNED]):
            return what
    return "a name, host or secret by its key" if value and _KEYS.search(key) and not _TOKENIZER.search(key) else None


def strips(path: str) -> bool:
    """Whether a stripped result leaves this file out."""
    return side_file(path) is not None


def clean_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Without the entries that tell about people, machines or keys."""
    return {k: v for k, v in metadata.items() if not telling(k, v)}
