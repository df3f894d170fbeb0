import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robuq.config import ConfigError, DataConfig
from robuq.data.split import limited, stratified_split

LABELS = np.repeat(np.arange(4), [100, 40, 8, 2])


def counts(labels: np.ndarray) -> list[int]:
    return np.bincount(labels, minlength=4).tolist()


def test_every_class_is_held_out_in_proportion():
    split = stratified_split(LABELS, DataConfig(held_out=0.25))
    assert counts(LABELS[split.held_out]) == [25, 10, 2, 1]
    assert sorted([*split.train, *split.held_out]) == list(range(len(LABELS)))


@given(
    sizes=st.lists(st.integers(2, 30), min_size=2, max_size=6),
    held_out=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_both_sides_have_every_class(sizes, held_out, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    split = stratified_split(labels, DataConfig(held_out=held_out, split_seed=seed))
    assert set(labels[split.train]) == set(labels[split.held_out]) == set(range(len(sizes)))
    assert not set(split.train) & set(split.held_out)


def test_the_seed_decides():
    one, same, other = (stratified_split(LABELS, DataConfig(split_seed=seed)).held_out for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_limit_keeps_proportions_and_the_held_out_images():
    whole, part = (stratified_split(LABELS, DataConfig(limit=limit)) for limit in (None, 56))
    assert np.array_equal(whole.held_out, part.held_out)
    assert set(part.train) < set(whole.train)
    assert counts(LABELS[part.train]) == [37, 15, 3, 1]


def test_smaller_limits_are_nested():
    small, large = (set(limited(LABELS, DataConfig(limit=limit))) for limit in (80, 120))
    assert small < large
    assert len(small) == 80


def test_a_limit_above_the_size_keeps_all():
    assert np.array_equal(limited(LABELS, DataConfig(limit=1000)), np.arange(len(LABELS)))


def test_single_images_and_starved_classes_are_refused():
    with pytest.raises(ConfigError, match="class 1 has one image"):
        stratified_split(np.array([0, 0, 1]), DataConfig())
    with pytest.raises(ConfigError, match="limit 3 is below the 4 classes"):
        limited(LABELS, DataConfig(limit=3))
