"""What the README promises is there, and what is there is in the README. tests/service/test_readme.py runs its commands."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml

from app import metrics
from app.budget import Budget
from app.cli import app
from app.config import Settings
from app.job_spec import OUTPUTS, PRESETS, Gates, JobSpec
from app.recipe import STEPS, Lossless, Prune, Quantize, Restore, Targeted, parse_recipe
from app.steps.image import Image, Target
from app.traffic import Traffic

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ROWS = [line for line in README.splitlines() if line.startswith("|")]
BLOCKS = re.findall(r"^```(\S*) ?(\S*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def row(column: int, name: str) -> bool:
    """Whether a table has a row whose cell at `column` names it."""
    return any(f"`{name}`" in line.split("|")[column + 1] for line in ROWS)


@pytest.mark.parametrize("name", sorted({name for methods in STEPS.values() for name in methods}))
def test_every_method_has_a_line(name):
    assert row(0, name)


@pytest.mark.parametrize("cls", [Targeted, Prune, Quantize, Lossless, Restore, Image, Target])
def test_every_field_of_a_method_has_a_line(cls):
    assert [f for f in cls.model_fields if f != "method" and not row(1, f)] == []


@pytest.mark.parametrize("name, cls", STEPS["dataset"].items())
def test_every_field_of_a_step_on_a_data_set_has_a_line(name, cls):
    told = [line.split("|")[2] for line in ROWS if f"`{name}`" in line.split("|")[1]]
    assert told and [f for f in cls.model_fields if f != "method" and not any(f"`{f}`" in cell for cell in told)] == []


@pytest.mark.parametrize("cls", [JobSpec, Gates, Budget])
def test_every_field_of_a_job_is_told(cls):
    assert [f for f in cls.model_fields if not any(f"`{f}`" in line for line in ROWS)] == []


@pytest.mark.parametrize("name", [*PRESETS, *sorted({f for kind in STEPS for f in OUTPUTS[kind]})])
def test_every_preset_and_format_has_a_line(name):
    assert row(0, name)


def test_every_command_has_a_line():
    commands = typer.main.get_command(app).commands
    assert [c for c in commands if not row(0, f"modelpress {c}")] == []
    for group in ("jobs", "db", "keys", "encryption"):
        assert [s for s in commands[group].commands if not any(s in line for line in ROWS if f"`modelpress {group}`" in line)] == []


def test_every_option_of_compress_and_keys_is_told():
    commands = typer.main.get_command(app).commands
    options = {o for c in commands.values() for p in c.params for o in p.opts if o.startswith("--")} - {"--help", "--output"}
    assert [o for o in sorted(options) if o not in README] == []


def test_every_setting_that_the_table_names_exists():
    named = {n for line in ROWS for n in re.findall(r"`MODELPRESS_([A-Z_]+)`", line.split("|")[1])}
    assert {n.lower() for n in named} <= set(Settings.model_fields) and named


def test_every_block_is_run_or_parsed():
    assert {(language, mark) for language, mark, _ in BLOCKS} == {("sh", "install"), ("sh", "service"), ("json", "")}
    for text in (text for language, _, text in BLOCKS if language == "json"):
        parse_recipe(json.loads(text))


def test_make_knows_the_targets():
    lines = [line.split("#")[0].split() for _, mark, text in BLOCKS if mark == "install" for line in text.splitlines()]
    for command in lines:
        assert command[0] == "make" and subprocess.run([*command, "-n"], cwd=ROOT, capture_output=True).returncode == 0


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [x for x in links if not x.startswith("https://") and not (ROOT / x).exists()] == []


def test_every_metric_and_every_alert_is_told():
    text = (ROOT / "docs/operating.md").read_text()
    told = set(re.findall(r"modelpress_[a-z_]+", text))
    ours = set(re.findall(r'"(modelpress_[a-z_]+)"', (ROOT / "app/metrics.py").read_text())) | {f"modelpress_{name}" for name, *_ in metrics.SUMMARIES.values()}
    ours |= {f"modelpress_{name}_total" for name, *_ in metrics.COUNTERS.values()}
    ours |= {s.name for family in Traffic().registry.collect() for s in family.samples} | {"modelpress_http_requests_total", "modelpress_http_bytes_total"}
    assert ours - told == set()
    rules = [rule for group in yaml.safe_load((ROOT / "docs/alerts.yml").read_text())["groups"] for rule in group["rules"]]
    used = {name for rule in rules for name in re.findall(r"modelpress_[a-z_]+", rule["expr"])}
    assert used and {re.sub(r"_(count|sum)$", "", name) for name in used} <= ours
