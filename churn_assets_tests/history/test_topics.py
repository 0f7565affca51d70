"""Topics: prevents topic vectors that depend on the batch, process or run that computes them, which
would make features differ from one backfill to the next, and an own E-step that is not LDA's.
"""

import json
import os
import random
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from churn_assets.history.text_models import CHUNK, MIN_TEXTS
from churn_assets.history.topics import TOPIC_PRIOR, TOPICS, TopicModel, fit_topics, match_topics
from churn_assets_tests.conftest import query, review_texts, utc_connection

SEED = 7
TEXTS = review_texts(400)
# More than a chunk, words that are unknown, and no words at all.
NEW_TEXTS = [*review_texts(CHUNK + 30, seed=1), "", "😀", "Доставка", "lamp"]


@pytest.fixture(scope="module")
def model() -> TopicModel:
    fitted = fit_topics(TEXTS, SEED)
    assert fitted is not None
    return fitted


def in_batches(model: TopicModel, size: int) -> np.ndarray:
    starts = range(0, len(NEW_TEXTS), size)
    return np.vstack([model.transform(NEW_TEXTS[start : start + size]) for start in starts])


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_vectors_are_equal_in_every_batch_and_order(model: TopicModel, size: int):
    whole = model.transform(NEW_TEXTS)
    assert np.array_equal(in_batches(model, size), whole)
    assert np.array_equal(model.transform(NEW_TEXTS[::-1])[::-1], whole)


def test_weights_are_equal_to_the_last_bit_in_every_batch(model: TopicModel):
    # Equal after rounding is luck if it is not equal before.
    texts = NEW_TEXTS[-200:]
    alone = np.vstack([model.weights([text]) for text in texts])
    assert np.array_equal(model.weights(texts), alone)


def test_another_process_fits_and_transforms_equally(model: TopicModel):
    code = (
        "import json, sys; from churn_assets.history.topics import fit_topics;"
        "texts, seed, new_texts = json.load(sys.stdin);"
        "model = fit_topics(texts, seed);"
        "print(model.version, model.transform(new_texts).tobytes().hex())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([TEXTS[::-1] + TEXTS, SEED, NEW_TEXTS]),
        env=os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = f"{model.version} {model.transform(NEW_TEXTS).tobytes().hex()}\n"
    assert shown.stdout == expected


def test_it_is_the_model_and_the_e_step_of_scikit_learn(model: TopicModel):
    from sklearn.decomposition import LatentDirichletAllocation

    reference = LatentDirichletAllocation(TOPICS, max_iter=1).fit(model.counts(TEXTS))
    reference.components_ = model.components
    reference.exp_dirichlet_component_ = model.beta.T.copy()
    vectors = reference.transform(model.counts(NEW_TEXTS))
    weights = model.weights(NEW_TEXTS)
    assert np.allclose(weights / weights.sum(axis=1, keepdims=True), vectors, rtol=0, atol=1e-6)
    assert np.allclose(model.transform(NEW_TEXTS), vectors, rtol=0, atol=1e-5)


def test_vectors_add_up_to_one_and_fit_the_table_exactly(model: TopicModel):
    vectors = model.transform(NEW_TEXTS)
    assert vectors.shape == (len(NEW_TEXTS), TOPICS)
    assert vectors.dtype == np.float64
    assert {sum(Decimal(repr(share)) for share in row) for row in vectors.tolist()} == {1}
    with utc_connection() as connection:
        connection.register("vectors", {"share": vectors.ravel()})
        lost = query("SELECT share FROM vectors WHERE share::DECIMAL(7, 6) <> share", connection)
    assert lost == []


@pytest.mark.parametrize("text", ["", " \n", "😀😀", "Доставка была ужасной", "the a of", "12 345"])
def test_a_text_without_known_words_says_nothing(model: TopicModel, text: str):
    assert model.transform([text]).tolist() == [[TOPIC_PRIOR] * TOPICS]


def test_no_texts_have_no_vectors(model: TopicModel):
    assert model.transform([]).shape == (0, TOPICS)


def test_there_is_no_model_for_too_few_texts_or_texts_that_share_no_word():
    assert fit_topics(TEXTS[: MIN_TEXTS - 1] * 3, SEED) is None
    assert fit_topics((str(number) for number in range(MIN_TEXTS)), SEED) is None


def test_topics_are_the_subjects_of_texts():
    from sklearn.metrics import normalized_mutual_info_score

    # Ten subjects with eight words of their own; each text is about one.
    rng = random.Random(0)
    subjects = [[f"{first}o{second}o" for second in "bcdfghjk"] for first in "bcdfghjklm"]
    texts = [" ".join(rng.choices(words, k=12)) for words in subjects for _ in range(30)]
    model = fit_topics(texts, SEED)
    assert model is not None
    strongest = model.transform(texts).argmax(axis=1)
    assert normalized_mutual_info_score(np.arange(300) // 30, strongest) > 0.85
    assert set(model.top_words(3)[strongest[0]]) <= {*subjects[0]}


def test_a_saved_model_is_the_same_model(model: TopicModel, tmp_path: Path):
    model.save(tmp_path / "topics")
    loaded = TopicModel.load(tmp_path / "topics")
    assert loaded.version == model.version
    assert loaded.top_words() == model.top_words()
    assert np.array_equal(loaded.transform(NEW_TEXTS), model.transform(NEW_TEXTS))


def test_the_version_changes_with_the_seed(model: TopicModel):
    other = fit_topics(TEXTS, SEED + 1)
    assert other is not None
    assert other.version != model.version


def test_matching_finds_topics_in_another_order_and_vocabulary(model: TopicModel):
    order = np.random.default_rng(0).permutation(TOPICS)
    columns = np.arange(len(model.forms))[::-1]
    shuffled = replace(
        model, forms=model.forms[columns], components=model.components[order][:, columns]
    )
    matched = match_topics(shuffled, model)
    assert [(old, new) for old, new, _ in matched] == list(enumerate(order))
    assert np.allclose([similarity for _, _, similarity in matched], 1)


def test_matching_is_one_to_one_after_a_refit(model: TopicModel):
    refitted = fit_topics([*TEXTS[100:], *review_texts(100, seed=2)], SEED)
    assert refitted is not None
    old, new, similarities = zip(*match_topics(model, refitted), strict=True)
    assert list(old) == sorted(new) == list(range(TOPICS))
    assert all(0 < similarity < 1 for similarity in similarities)


def test_memory_does_not_grow_with_the_number_of_texts(model: TopicModel):
    def peak(texts: list[str]) -> int:
        tracemalloc.start()
        vectors = model.transform(texts)
        grown = tracemalloc.get_traced_memory()[1] - vectors.nbytes
        tracemalloc.stop()
        return grown

    texts = NEW_TEXTS[:CHUNK]
    assert peak(texts * 4) < 1.2 * peak(texts)
