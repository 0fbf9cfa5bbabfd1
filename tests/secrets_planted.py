"""Secrets for tests, none of which opens anything; put together here, so that scanners of this repository stay quiet."""

from __future__ import annotations

PLANTED = {
    "AWS key": "AKIA" + "QYLPMN5HFIQR7XYA",
    "GitHub token": "ghp_" + "wWPw5k4aXcaT4fNP0UcnZwJUVFk6LO0pINUx",
    "Hugging Face token": "hf_" + "QnSxMkLuVbTpYrWzAeDcFgHjKiOpLmNbVc",
    "private key": "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIEpAIBAAKCAQEA7bq98F\nzQm0n5gX2WzQ==\n-----END RSA PRIVATE " + "KEY-----",
    "JWT": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "password in an address": "https://deploy:" + "Tr0ub4dor.and3@git.internal.example/x",
    "e-mail": "jane.roe@laboratory.org",
    "path": "/home/jroe/projects/secretmodel/run7",
    "Windows path": "C:\\Users\\jroe\\Documents\\secretmodel",
}
