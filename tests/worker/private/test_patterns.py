"""What texts give away, whole, and what only looks so."""

from __future__ import annotations

import base64
import random

import pytest
from secrets_planted import PLANTED

from worker.private import binaries, texts
from worker.private.patterns import MARKER, masked, named, spans, without

MORE = {
    "long path": "/scratch/bob/run-1/x.pt", "home": "~/models/x", "share": "\\\\server\\share\\x", "bucket": "s3://bucket/x", "machine": "10.0.0.7:8080",
    "slack": "xox" + "b-123456789012-abcdefghij", "google": "AIza" + "Sy" + "a1B2c" * 6 + "xyz", "hub": "mp_" + "a1" * 21 + "b", "gitlab": "glpat-" + "a1B2" * 5,
    "npm": "//registry.example.org/:_authToken=" + "npm" + "_" + "a1B2" * 9, "registry": "/:_authToken=" + "0a1b2c3d-" * 3 + "0a1b2c3d0",
    "openai": "sk-" + "svcacct-" + "a1B2c" * 4 + "T3Blbk" + "FJ" + "a1B2c" * 4,
}  # fmt: skip
HARMLESS = [
    "<s>", "0", "1.2.3.4", "torch.bfloat16", "silu", "meta-llama/Llama-3-8B", "https://example.org/licence", "https://example.org/home/x", "1/2", "and/or",
    '{"json": [1, NaN]}', "(?i:'s|'t|'re)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+", "sk-learn", "/usr/bin/env python", "a@b", "git@github.com:a/b", "d41d8cd98f00b204e9800998ecf8427e",
    "sha256:" + "0a1b" * 16, "12345678:" + "0a1b" * 16, "Ġ/home/", "@gmail.com", "C:\\", "eyJhIjox", "AKIA", "{{ messages[0]['content'] }}", "s://", "$\\\\alpha$", MARKER,
]  # fmt: skip


@pytest.mark.parametrize("name", PLANTED | MORE)
def test_found_whole_wherever_it_stands(name):
    secret = (PLANTED | MORE)[name]
    for before, after in (("", ""), ("see ", " here"), ('"', '"'), ("x=", "\n"), ("(", ")")):
        found = spans(before + secret + after)
        clean = without(before + secret + after, found)
        assert found and core(secret) not in clean and clean.startswith(before) and clean.endswith(after) and not spans(clean)


def core(secret: str) -> str:
    """Of a password in an address, the password."""
    return secret.split(":")[2].split("@")[0] if "://" in secret and "@" in secret else secret


BEGINNINGS = (
    "bob@example.com, \n", "http://10.0.0.1:80/ ", "https://a:b@c.d/ ", "-----BEGIN PRIVATE KEY-----\n", "eyJaaaaa-", "eyJaaaaa", "sk-", "sk-T3BlbkFJ", "//", "/:_authToken=", "/home/a//",
    "SG.aaaaaaaaaaaaaaaaaaaaaa", "xoxb-1-", "://a:", "C:\\Users\\", "a@", "1.1.1.1:", "aws key ", "AKIA", "glagent-",
)  # fmt: skip


@pytest.mark.parametrize("part", BEGINNINGS)
def test_a_text_of_nothing_but_what_a_pattern_begins_with_are_looked_through(part):
    """Whatever looks ahead to the end from each place takes hours for this."""
    text = part * (400_000 // len(part))
    looked, seen = texts.look("a.txt", text), binaries.look("a.bin", b"\0" + text.encode())
    assert looked.clean is None or spans(looked.clean[:2000], plain=True) == []
    assert seen.clean is None or len(seen.clean) == len(text) + 1


def test_each_finding_has_its_line():
    found = texts.look("a.txt", "x\nbob@example.com and eve@example.com\n\n\nmal@example.com").findings
    assert [f["where"] for f in found] == ["a.txt: line 2", "a.txt: line 2", "a.txt: line 5"]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_so(text):
    assert spans(text) == []


def test_products_of_matrices_are_no_addresses_and_base64_is_no_key():
    assert spans("attn = query@key.transpose(-2, -1) + a@b.mT", code=True) == [] and spans("x = 'me@example.org'", code=True)
    rng = random.Random(0)
    assert not spans("\n".join(base64.b64encode(rng.randbytes(rng.randint(1, 300))).decode() + f" {i}" for i in range(3000)), plain=True)
    assert not spans("\n".join(rng.randbytes(32).hex() for _ in range(3000)), plain=True)


def test_assignments_in_lines():
    text = 'password: hunter22\napi_key = "abcdefgh"\nThe secret: of life\nmax_tokens: 1234567\n'
    assert [text[s.start : s.end] for s in spans(text, plain=True)] == ["hunter22", "abcdefgh"]


def test_keys_that_name_somebody():
    assert all(map(named, ("author", "user_name", "api-key", "x.password", "hub_token", "hostname", "e-mail", "client_secret")))
    assert not any(map(named, ("bos_token", "pad_token_id", "max_tokens", "user", "tokenizer", "keys", "hidden_size", "image_token", "authority")))


@pytest.mark.parametrize("secret", PLANTED.values())
def test_masks_tell_two_characters_at_most(secret):
    assert secret[2:] not in masked(secret) and len(masked(secret)) < 30
