"""The table of public weights says what timm says of its own, and can be used here."""

import re

import pytest
import torch
from timm.models import create_model, get_pretrained_cfg

from models.configs import get_config
from models.pretrained.zoo import ZOO

# timm does not know what others have fine-tuned from its models.
OF_TIMM = {
    name: row
    for name, row in ZOO.items()
    if row.repository.startswith("timm/") and name != "inat21-l14"
}


@pytest.mark.parametrize("name", ZOO)
def test_a_row_can_be_used(name):
    row = ZOO[name]
    patch = get_config(row.model_type).patch_size
    assert row.native_size % patch == row.img_size % patch == 0
    assert re.fullmatch("main|[0-9a-f]{40}", row.revision)
    assert row.sha256 is None or re.fullmatch("[0-9a-f]{64}", row.sha256)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", row.repository)
    assert re.search(r"arXiv \d{4}\.\d{5}$", row.source)
    assert "/" not in name  # an address on the hub has one


@pytest.mark.parametrize("name", OF_TIMM)
def test_a_row_is_what_timm_says(name):
    row = OF_TIMM[name]
    known = get_pretrained_cfg(row.repository.removeprefix("timm/"))
    assert (known.mean, known.std) == (row.profile.mean, row.profile.std)
    assert known.input_size == (3, row.native_size, row.native_size)
    assert row.licence in (known.license, None)
    is_quick = "QuickGELU" in "".join(known.notes or ())
    assert row.profile.activation == ("quick_gelu" if is_quick else "gelu")
    with torch.device("meta"):
        theirs = create_model(known.architecture, num_classes=0)
    ours = get_config(row.model_type)
    block = theirs.blocks[0]
    assert (ours.embed_dim, ours.depth) == (theirs.embed_dim, len(theirs.blocks))
    assert (ours.num_heads, ours.mlp_dim) == (block.attn.num_heads, block.mlp.fc1.out_features)
    assert theirs.patch_embed.patch_size == (ours.patch_size, ours.patch_size)
    assert theirs.norm.eps == row.profile.layer_norm_eps
