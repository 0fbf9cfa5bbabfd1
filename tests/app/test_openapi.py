"""What the OpenAPI document says is what the server does: schemathesis asks for all of it, rightly and wrongly. `make schema` runs this alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
def test_no_error_of_the_service_and_no_answer_that_is_not_documented(tmp_path, serve_api):
    pytest.importorskip("schemathesis", reason="pip install -e .[schema]")
    program = Path(sys.executable).with_name("schemathesis")
    with serve_api(tmp_path, rate_limit="") as api:
        call = [program, "run", f"{api.url}/openapi.json", "-H", f"Authorization: Bearer {api.keys['alice']}", "--checks", CHECKS, "--phases", "examples,coverage,fuzzing"]
        bounds = ["--max-time", "60", "--max-examples", "10", "--warnings", "off", "--exclude-path", "/readyz", "--generation-database", "none"]  # no broker here: never ready
        done = subprocess.run([*call, *bounds], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
