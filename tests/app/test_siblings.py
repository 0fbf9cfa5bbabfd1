from __future__ import annotations

from app.siblings import fused


def test_siblings_share_a_name_and_others_keep_theirs():
    for parts in (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"), ("w1", "w3")):
        assert len({fused(f"model.layers.3.x.{part}.weight") for part in parts}) == 1
    assert fused("model.layers.3.q_proj.weight") != fused("model.layers.4.k_proj.weight")
    for alone in ("model.layers.3.o_proj.weight", "layers.0.down_proj.weight", "query", "layers.1.keys.weight", "w2.weight"):
        assert fused(alone) == alone
