"""Branches of the code that judges what strangers send, that moves jobs, and that signs, which the tests of these parts take: `python -m benchmarks.branches [GROUP ...]`.

Wants the extra `coverage`. API processes of tests are counted, jailed children are not (they can write no data out).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
GROUPS = {
    "validators": (
        "app/strict.py app/limits.py app/formats.py app/safetensors_header.py app/job_spec.py app/recipe.py app/patterns.py app/inputs.py app/compose.py app/tus.py app/wire.py app/customer_keys.py "
        "app/api/requests.py app/outline.py app/made.py app/addresses.py worker/formats/zip_walk.py worker/formats/tar_walk.py worker/formats/archive.py worker/formats/member_names.py "
        "worker/formats/pickle_walk.py worker/formats/pickle_globals.py worker/formats/pickle_scan.py worker/formats/pickle_tensors.py worker/formats/state_dict.py worker/formats/torch_zip.py "
        "worker/formats/pt2_file.py worker/formats/pt2_program.py worker/formats/pt2_schema.py worker/formats/pt2_treespec.py worker/formats/pt2_expressions.py worker/formats/json_checks.py "
        "worker/formats/npy_header.py worker/formats/packed_index.py worker/formats/packed_reader.py worker/images/picture.py worker/images/png_walk.py worker/images/jxl_header.py "
        "worker/images/index.py worker/datasets/npy.py worker/datasets/csv_dialect.py worker/datasets/csv_file.py worker/datasets/csv_lines.py worker/datasets/csv_types.py worker/datasets/index.py",
        "tests/app/test_recipe.py tests/app/test_formats.py tests/app/test_safetensors_header.py tests/app/test_requests.py tests/app/test_inputs.py tests/app/test_compose.py tests/app/test_wire.py "
        "tests/app/test_addresses.py tests/app/test_budget.py tests/app/test_kinds.py tests/app/test_jobs_api.py tests/app/test_customer_keys.py tests/app/test_uploads.py tests/test_fuzz.py tests/worker/formats "
        "tests/worker/images/test_picture.py tests/worker/images/test_private.py tests/worker/datasets/test_arrays.py tests/worker/datasets/test_csv_file.py tests/worker/datasets/test_odd_sets.py",
    ),
    "state machine": (
        "app/jobs.py app/claiming.py app/turns.py app/sweep.py app/settled.py app/resumable.py app/recipients.py app/idempotency.py app/blobs.py app/collect.py app/retention.py",
        "tests/app/test_jobs.py tests/app/test_turns.py tests/app/test_sweep.py tests/app/test_settled.py tests/app/test_idempotency.py tests/app/test_collect.py tests/app/test_retention.py "
        "tests/app/test_shared_blobs.py tests/app/test_claims.py tests/app/test_siblings.py tests/app/test_customer_keys.py tests/app/test_uploads.py",
    ),
    "signing": (
        "app/signing.py app/sign.py app/statement.py app/verify.py app/rotation.py app/key_states.py app/public_keys.py app/chunks.py app/verified.py app/quarantine.py app/scrub.py",
        "tests/app/test_signing.py tests/app/test_sign.py tests/app/test_verify.py tests/app/test_rotation.py tests/app/test_public_keys.py tests/app/test_chunks.py tests/app/test_quarantine.py "
        "tests/app/test_files.py tests/app/test_customer_keys.py",
    ),
}  # fmt: skip
_SETTINGS = "[run]\nbranch = true\nparallel = true\nsigterm = true\nsource = app,worker\npatch = subprocess,fork\ndata_file = {folder}/data\n[report]\nignore_errors = true\n"


def main(*chosen: str) -> int:
    failed = 0
    for name in chosen or GROUPS:
        files, tests = GROUPS[name]
        with tempfile.TemporaryDirectory() as folder:
            settings = Path(folder, "settings")
            settings.write_text(_SETTINGS.format(folder=folder))
            coverage = [sys.executable, "-m", "coverage"]
            here = [test for test in tests.split() if (ROOT / test).exists()]
            ran = subprocess.run([*coverage, "run", f"--rcfile={settings}", "-m", "pytest", "-q", "-n", "0", *here], cwd=ROOT, env=os.environ | {"MODELPRESS_JAIL": "best-effort"})
            failed |= ran.returncode
            subprocess.run([*coverage, "combine", f"--rcfile={settings}", "-q"], cwd=ROOT)
            subprocess.run([*coverage, "json", f"--rcfile={settings}", "-q", "-o", f"{folder}/found.json", f"--include={files.replace(' ', ',')}"], cwd=ROOT, check=True)
            found = json.loads(Path(folder, "found.json").read_text())
        total = found["totals"]
        print(f"{name}: {total['covered_branches']} of {total['num_branches']} branches, {total['covered_lines']} of {total['num_statements']} statements", flush=True)
        for path, of in sorted(found["files"].items()):
            if of["missing_branches"]:
                print(f"    {path}: {of['summary']['covered_branches']} of {of['summary']['num_branches']}; not taken: {', '.join(f'{a}->{b}' for a, b in of['missing_branches'])}")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
