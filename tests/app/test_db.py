"""What an error of the database tells."""

from __future__ import annotations

import pytest
from homes import KINDS, own_home
from sqlalchemy.exc import IntegrityError

from app.db import session
from app.models import Secret


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_tells_no_values(tmp_path, kind):
    with own_home(tmp_path, kind), pytest.raises(IntegrityError) as error, session() as s:
        for _ in range(2):
            s.add(Secret(name="links", value="hidden-value"))
            s.flush()
            s.expunge_all()
    assert "secrets" in str(error.value) and "hidden-value" not in str(error.value)
