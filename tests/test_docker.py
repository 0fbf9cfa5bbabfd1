"""The files for containers, held to the code and to their own promises. No engine is needed: nothing is built here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main
import yaml

from app.cli import app
from app.config import Settings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict] = COMPOSE["services"]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
EXAMPLE = (ROOT / "docker" / ".env.example").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
OURS = ("api", "control", "sign", "webhooks", "worker", "worker-gpu", "migrate")
DATA = ("postgres", "redis", "store")
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN")


def stages() -> dict[str, str]:
    """Name of a stage -> what it is made from."""
    return {name: source for source, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}


def finals() -> dict[str, str]:
    """The stages that are run -> their text."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return {name: text for name, text in zip(parts[1::2], parts[2::2]) if "ENTRYPOINT" in text}


def test_all_services_are_there():
    assert set(SERVICES) == {*OURS, *DATA, "bucket", "proxy"}
    assert SERVICES["api"]["deploy"]["replicas"] == 2 and SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    (gpu,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert gpu["capabilities"] == ["gpu"] and gpu["driver"] == "nvidia" and len(gpu["device_ids"]) == 1  # one worker process per GPU


@pytest.mark.parametrize("name", OURS)
def test_every_setting_and_command_exists(name):
    service = SERVICES[name]
    named = {n.removeprefix("MODELPRESS_").lower() for n in service["environment"] if n.startswith("MODELPRESS_")}
    assert named and named <= set(Settings.model_fields), named - set(Settings.model_fields)
    command = typer.main.get_command(app)
    for word in service["command"]:
        command = command.commands[word]


def test_every_setting_of_the_images_exists():
    named = set(re.findall(r"MODELPRESS_([A-Z_]+)=", DOCKERFILE))
    assert named and {n.lower() for n in named} <= set(Settings.model_fields)


@pytest.mark.parametrize("name", OURS)
def test_our_images_are_stages_of_this_version(name):
    service = SERVICES[name]
    stage = service["build"]["target"]
    assert service["build"]["dockerfile"] == "docker/Dockerfile" and stage in finals()
    assert service["image"] == f"modelpress-{stage}:{VERSION}"


def test_images_are_pinned():
    foreign = [s["image"] for n, s in SERVICES.items() if n not in OURS] + [source for source in stages().values() if source not in stages()]
    assert foreign and [i for i in foreign if not re.search(r":(\d+\.\d+\.\d+|\d+\.\d+-|RELEASE\.\d{4}-)", i)] == []
    assert "latest" not in TEXT + DOCKERFILE


def test_nobody_is_root_in_our_images():
    assert set(finals()) == {"api", "worker-cpu", "worker-cuda"}
    for text in finals().values():
        assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["10001:10001"]
        assert re.search(r'^ENTRYPOINT \["modelpress"\]$', text, re.MULTILINE) and re.search(r'^HEALTHCHECK .* CMD \["python",', text, re.MULTILINE)
    assert not any("user" in SERVICES[n] for n in OURS)


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_locked_down(name):
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] and service["pids_limit"]
    assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "userns_mode", "devices"} & set(service)


@pytest.mark.parametrize("name", SERVICES)
def test_what_runs_has_a_health_check_and_time_to_stop(name):
    service = SERVICES[name]
    if name in ("migrate", "bucket"):
        assert service["restart"] == "no"
        return
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service or name in OURS  # ours have theirs in the image
    assert "stop_grace_period" in service or name == "redis"  # which keeps nothing


def test_who_can_reach_whom():
    inside = {n for n, network in COMPOSE["networks"].items() if network.get("internal")}
    assert inside == {"front", "backend", "messages", "workers"}
    assert {n for n, s in SERVICES.items() if set(s["networks"]) - inside} == {"proxy", "webhooks"}
    assert [n for n, s in SERVICES.items() if "ports" in s] == ["proxy"]
    assert {n for n, s in SERVICES.items() if "workers" in s["networks"]} == {"worker", "worker-gpu", *DATA}
    assert SERVICES["worker"]["networks"] == SERVICES["worker-gpu"]["networks"] == ["workers"]
    assert {n for n, s in SERVICES.items() if "front" in s["networks"]} == {"proxy", "api"}
    met = {n for n, s in SERVICES.items() if set(s["networks"]) & set(SERVICES["webhooks"]["networks"])}
    assert met == {"webhooks", "postgres", "redis"}


def test_open_requests_have_the_time_that_the_documentation_promises():
    grace = SERVICES["api"]["environment"]["MODELPRESS_API_GRACE"]
    assert grace < int(SERVICES["api"]["stop_grace_period"].removesuffix("s"))
    assert f"{grace} seconds (`MODELPRESS_API_GRACE`)" in (ROOT / "docs" / "production.md").read_text()


def test_whatever_reads_a_whole_file_has_time_in_the_proxy():
    conf = (ROOT / "docker" / "nginx.conf").read_text()
    (pattern,) = re.findall(r"location ~ (\S+) \{[^}]*proxy_read_timeout 3600s;", conf)
    assert all(re.search(pattern, path) for path in ("/v1/artifacts", "/v1/uploads/5", "/v1/direct-uploads/5/complete")) and not re.search(pattern, "/v1/jobs")


def test_the_key_is_the_sign_process_own():
    assert [n for n, s in SERVICES.items() if any("signing-key" in v for v in s.get("volumes", []))] == ["sign"]
    assert not any(n.startswith(("AWS_", "MODELPRESS_STORAGE")) for n in SERVICES["webhooks"]["environment"])
    assert SERVICES["migrate"]["environment"].keys() == {"MODELPRESS_DATABASE_URL"}


def test_no_secret_has_a_default():
    told = dict(re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert {n for n in told if SECRET.search(n)} and [n for n, value in told.items() if SECRET.search(n) and value] == []
    used = dict(re.findall(r"\$\{([A-Z_]+)(:?[?-])?", TEXT))
    assert set(used) == set(told)
    assert [n for n in used if SECRET.search(n) and used[n] != ":?"] == []
    for name, service in SERVICES.items():
        for variable, value in service["environment"].items() if "environment" in service else ():
            if SECRET.search(variable) or "://" in str(value) and "@" in str(value):
                assert re.search(r"\$\{[A-Z_]+:\?", value), (name, variable)
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_recipe_for_secrets_fills_in_every_one(tmp_path):
    (recipe,) = re.findall(r"^#\s+\((umask.*)\)$", EXAMPLE, re.MULTILINE)
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / ".env.example").write_text(EXAMPLE)
    subprocess.run(["sh", "-c", recipe], cwd=tmp_path, check=True)
    made = tmp_path / "docker" / ".env"
    values = re.findall(r"^[A-Z_]+=(.*)$", made.read_text(), re.MULTILINE)
    assert all(values) and len([v for v in values if re.fullmatch("[0-9a-f]{40}", v)]) == EXAMPLE.count("=\n")
    assert made.stat().st_mode & 0o777 == 0o600


def test_the_build_sees_what_it_copies_and_little_else():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    admitted = {line[1:].removesuffix("/**") for line in ignored if line.startswith("!")}
    copied = {source.removeprefix("./") for source in re.findall(r"^COPY (?!--from)(\S+)", DOCKERFILE, re.MULTILINE)}
    assert ignored[0] == "*" and copied == admitted and all((ROOT / name).exists() for name in copied)


@pytest.mark.slow
def test_the_service_runs_from_what_the_api_image_has(tmp_path):
    """Installed as there: without worker/, without torch, migrations included."""
    for name in ("app", "migrations"):
        shutil.copytree(ROOT / name, tmp_path / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "src")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "site"), str(tmp_path / "src")]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import app.main, app.control, app.sign, app.webhooks, app.cli, app.migrate
assert app.main.__file__.startswith(sys.argv[1]) and str(app.migrate.FOLDER).startswith(sys.argv[1])
app.migrate.upgrade()
print([m for m in ("torch", "worker") if m in sys.modules])
"""
    environment = os.environ | {"MODELPRESS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "site")], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr[-2000:]


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="docker-compose is not installed")
def test_compose_reads_it(tmp_path):
    filled = tmp_path / "env"
    filled.write_text(re.sub(r"=$", "=x", EXAMPLE, flags=re.MULTILINE))
    command = ["docker-compose", "-f", "docker-compose.yml", "--profile", "gpu", "config", "-q"]
    subprocess.run([*command[:1], "--env-file", str(filled), *command[1:]], cwd=ROOT, check=True)
    (tmp_path / "empty").touch()
    refused = subprocess.run([*command[:1], "--env-file", str(tmp_path / "empty"), *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode != 0 and "docker/.env" in refused.stderr  # nothing starts with an empty password
