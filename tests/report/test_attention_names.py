"""Short names: what attentions share is said once, what tells them apart stays."""

from kinetics_jax.report.attention_names import attention_names


def test_what_is_shared_is_said_once():
    spellings = [f"block_topk:budget={b},page_size=2,dense_layers=none" for b in (32, 96, 64)]
    names = attention_names(["dense", *spellings, *spellings])
    assert list(names.details) == [spellings[1], spellings[2], spellings[0], "dense"]
    assert [names.short(s) for s in ("dense", *spellings)] == [
        "dense",
        "block top-k, budget 32",
        "block top-k, budget 96",
        "block top-k, budget 64",
    ]
    assert names.note == "block top-k: page size 2, dense layers none"


def test_names_stay_different():
    spellings = [
        "block_topk:budget=64,page_size=16",
        "block_topk:budget=64,page_size=32",
        "block_topk:budget=64,page_size=16,recent_pages=2",
        "random_blocks:budget=64,page_size=16",
        "litesys_block_topk:pages=4,page_size=16",
        "sliding_window:budget=64",
    ]
    names = attention_names(spellings)
    short = {names.short(spelling) for spelling in spellings}
    assert len(short) == len(spellings)
    assert "block top-k, budget 64, page size 16, recent pages 2" in short
    assert "litesys block top-k, pages 4" in short
    assert names.note == "random blocks, litesys block top-k: page size 16"


def test_what_all_share_comes_first():
    spellings = [
        "dense",
        "block_topk:budget=64,page_size=16,dense_layers=none",
        "random_blocks:budget=64,page_size=16,dense_layers=none",
        "sliding_window:budget=64,dense_layers=none",
    ]
    assert attention_names(spellings).note == "sparse: dense layers none; block top-k, random blocks: page size 16"


def test_nothing_shared_nothing_noted():
    assert attention_names(["dense"]).note == ""
    assert attention_names([]).details == {}
