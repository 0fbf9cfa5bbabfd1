"""Secrets and signatures, against the public library of Standard Webhooks."""

from __future__ import annotations

import base64
import json
import time

import pytest
from homes import KINDS, own_home
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update
from standardwebhooks import Webhook, WebhookVerificationError

from app.db import now, session
from app.models import WebhookSecret
from app.webhook_secrets import current, headers, rotate, secret_of


@pytest.fixture(autouse=True, params=KINDS)
def home(request, tmp_path):
    with own_home(tmp_path, request.param):
        yield


def do(step, *args):
    with session() as s, s.begin():
        return step(s, *args)


def test_a_secret_is_made_once_and_is_the_owners_own():
    mine = do(secret_of, "alice")
    assert mine.secret.startswith("whsec_") and len(base64.b64decode(mine.secret[6:], validate=True)) == 32
    assert do(secret_of, "alice").secret == mine.secret != do(secret_of, "bob").secret
    assert do(current, "alice") == [mine.secret] and len(do(current, "carol")) == 1


def test_a_rotation_lets_the_secret_before_sign_along_for_a_day():
    old = do(secret_of, "alice").secret
    rotated = do(rotate, "alice")
    assert rotated.secret != old and do(current, "alice") == [rotated.secret, old]
    newest = do(rotate, "alice").secret
    assert do(current, "alice") == [newest, rotated.secret]
    with session() as s, s.begin():
        s.execute(update(WebhookSecret).values(previous_until=now() - 1))
    assert do(current, "alice") == [newest]
    do(rotate, "bob")  # the first call for an owner
    assert len(do(current, "bob")) == 2


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=20)), st.binary(min_size=24, max_size=64), st.binary(min_size=24, max_size=64))
def test_the_public_library_takes_what_either_secret_signed(document, one, other):
    body = json.dumps(document).encode()
    keys = ["whsec_" + base64.b64encode(k).decode() for k in (one, other)]
    made = headers(keys, "id-1", int(time.time()), body)
    for key in keys:
        assert Webhook(key).verify(body, made) == document
    for changed, head in ((body + b" ", made), (body, made | {"webhook-id": "id-2"}), (body, made | {"webhook-timestamp": str(int(time.time()) - 1)})):
        with pytest.raises(WebhookVerificationError):
            Webhook(keys[0]).verify(changed, head)


def test_an_old_one_is_refused_by_the_receiver():
    key = do(secret_of, "alice").secret
    with pytest.raises(WebhookVerificationError):
        Webhook(key).verify(b"{}", headers([key], "id", int(time.time()) - 301, b"{}"))
