import hashlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from quantvm.data.dataset import Dataset, Sample, choose_subset, draw_order

IDS = st.lists(st.text(st.characters(exclude_categories=()), min_size=1, max_size=6), unique=True, max_size=30)
SEEDS = st.integers(0, 5)


def samples_of(ids):
    return [Sample(name, Path("root") / "x", 0) for name in ids]


def ids_of(samples):
    return [sample.id for sample in samples]


@given(IDS, st.integers(1, 40), SEEDS)
def test_a_subset_has_the_asked_size_in_sorted_order(ids, size, seed):
    chosen = ids_of(choose_subset(samples_of(ids), size, seed))
    assert len(chosen) == min(size, len(ids))
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(ids)


@given(IDS, st.integers(1, 40), SEEDS, st.randoms())
def test_a_subset_does_not_depend_on_the_order_of_the_files(ids, size, seed, random):
    shuffled = random.sample(ids, len(ids))
    assert choose_subset(samples_of(ids), size, seed) == choose_subset(samples_of(shuffled), size, seed)


@given(IDS, st.integers(1, 40), st.integers(1, 40), SEEDS)
def test_a_smaller_subset_lies_inside_a_larger_one(ids, one, other, seed):
    small, large = sorted((one, other))
    samples = samples_of(ids)
    assert set(choose_subset(samples, small, seed)) <= set(choose_subset(samples, large, seed))


@given(IDS, st.integers(1, 40), SEEDS)
def test_an_image_more_changes_the_choice_by_at_most_one(ids, size, seed):
    before = set(ids_of(choose_subset(samples_of(ids), size, seed)))
    after = set(ids_of(choose_subset(samples_of([*ids, "a new image"]), size, seed)))
    assert len(before - after) <= 1


@given(IDS, SEEDS)
def test_without_a_size_all_are_taken(ids, seed):
    assert ids_of(choose_subset(samples_of(ids), None, seed)) == sorted(ids)


@given(IDS, SEEDS)
def test_the_draw_order_is_a_permutation(ids, seed):
    assert sorted(draw_order(ids, seed)) == sorted(ids)


def test_the_choice_is_the_same_on_every_machine_and_in_every_version():
    ids = [f"n{number:08}/{number}.JPEG" for number in range(1000)]
    chosen = ids_of(choose_subset(samples_of(ids), 5, 0))
    assert chosen == [
        "n00000279/279.JPEG",
        "n00000568/568.JPEG",
        "n00000572/572.JPEG",
        "n00000630/630.JPEG",
        "n00000657/657.JPEG",
    ]


def test_seeds_choose_differently():
    samples = samples_of(str(number) for number in range(1000))
    choices = [frozenset(choose_subset(samples, 100, seed)) for seed in range(10)]
    assert len(set(choices)) == 10
    assert all(len(one & choices[0]) < 30 for one in choices[1:])


def test_every_image_is_chosen_about_equally_often():
    samples = samples_of(str(number) for number in range(20))
    counts = dict.fromkeys(ids_of(samples), 0)
    for seed in range(1000):
        for name in ids_of(choose_subset(samples, 5, seed)):
            counts[name] += 1
    assert all(200 < count < 300 for count in counts.values())  # 250 expected, standard deviation 14


def test_the_hash_is_that_of_the_id_list():
    dataset = Dataset("x", Path(), tuple(samples_of(["a/1", "b/2"])))
    assert dataset.sha256 == hashlib.sha256(b"a/1\nb/2\n").hexdigest()
    assert len(dataset) == 2


def test_names_that_are_no_unicode_have_a_hash():
    dataset = Dataset("x", Path(), tuple(samples_of(["a\udcff"])))
    assert dataset.sha256 == hashlib.sha256(b"a\xed\xb3\xbf\n").hexdigest()
