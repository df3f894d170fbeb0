import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robuq.config import ConfigError, DataConfig
from robuq.data.split import limited, stratified_split, training_split

LABELS = np.repeat(np.arange(4), [100, 40, 8, 2])


def counts(labels: np.ndarray) -> list[int]:
    return np.bincount(labels, minlength=4).tolist()


def test_every_class_is_divided_in_proportion():
    split = stratified_split(LABELS, DataConfig(held_out=0.25, validation=0.2))
    assert counts(LABELS[split.held_out]) == [25, 10, 2, 1]
    assert counts(LABELS[split.validation]) == [15, 6, 1, 0]  # of 75, 30, 6 and 1, whose only image is trained on
    assert counts(LABELS[split.train]) == [60, 24, 5, 1]


@given(
    sizes=st.lists(st.integers(2, 30), min_size=2, max_size=6),
    held_out=st.floats(0.01, 0.99),
    validation=st.one_of(st.just(0.0), st.floats(0.001, 0.99)),
    seed=st.integers(0, 2**32),
)
def test_parts_are_disjoint_and_no_class_is_left_untrained(sizes, held_out, validation, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    split = stratified_split(labels, DataConfig(held_out=held_out, validation=validation, split_seed=seed))
    assert set(labels[split.train]) == set(labels[split.held_out]) == set(range(len(sizes)))
    assert sorted([*split.train, *split.validation, *split.held_out]) == list(range(len(labels)))
    left = np.array(sizes) - np.bincount(labels[split.held_out])
    expected = set(np.flatnonzero(left > 1)) if validation else set()
    assert set(labels[split.validation]) == expected


def test_validation_comes_out_of_the_training_images_alone():
    none, some = (stratified_split(LABELS, DataConfig(validation=fraction)) for fraction in (0.0, 0.3))
    assert np.array_equal(none.held_out, some.held_out)
    assert len(none.validation) == 0
    assert set(none.train) == {*some.train, *some.validation}


def test_training_files_of_their_own_are_divided_alike():
    train, validation = training_split(LABELS, DataConfig(validation=0.25, limit=56))
    assert counts(LABELS[validation]) == [25, 10, 2, 1]
    assert len(train) == 56
    assert not set(train) & set(validation)


def test_the_seed_decides():
    one, same, other = (stratified_split(LABELS, DataConfig(split_seed=seed)) for seed in (1, 1, 2))
    for part in ("train", "validation", "held_out"):
        assert np.array_equal(getattr(one, part), getattr(same, part))
        assert not np.array_equal(getattr(one, part), getattr(other, part))


def test_a_limit_keeps_proportions_and_the_other_parts():
    whole, part = (stratified_split(LABELS, DataConfig(limit=limit)) for limit in (None, 56))
    assert np.array_equal(whole.held_out, part.held_out)
    assert np.array_equal(whole.validation, part.validation)
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
