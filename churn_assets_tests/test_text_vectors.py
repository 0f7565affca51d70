"""Reduced text vectors: prevents vectors that depend on the batch, a model that is used with other
weights than it was fitted with, and a download where files are missing.

The embedding of `minilm` is tested on a small model of the same form, and on the published one
where `MINILM_DIR` names its folder.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from churn_assets.text_models import CHUNK, MIN_TEXTS
from churn_assets.text_vectors import (
    DIMENSIONS,
    MOST_TOKENS,
    TOKENIZER,
    WEIGHTS,
    Embedder,
    LsaVectors,
    MinilmVectors,
    fit_text_vectors,
    load_text_vectors,
)
from churn_assets_tests.conftest import review_texts

SEED = 7
TEXTS = review_texts(400)
NEW_TEXTS = [*review_texts(CHUNK + 30, seed=1), "", "😀", "Доставка", "lamp"]

installed = all(importlib.util.find_spec(name) for name in ("onnxruntime", "tokenizers"))
needs_embeddings = pytest.mark.skipif(
    not installed, reason="the extra `embeddings` (onnxruntime, tokenizers) is not installed"
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
        load_text_vectors("minilm", tmp_path / "vectors", tmp_path)


def test_minilm_without_its_files_says_what_to_do(tmp_path: Path):
    with pytest.raises(ValueError, match="CHURN_MINILM_DIR"):
        fit_text_vectors("minilm", TEXTS, SEED)
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json is missing: .* or use `lsa`"):
        fit_text_vectors("minilm", TEXTS, SEED, tmp_path)


@pytest.mark.skipif(installed, reason="the extra `embeddings` is installed")
def test_minilm_without_the_extra_says_what_to_do(tmp_path: Path):
    (tmp_path / WEIGHTS).parent.mkdir()
    (tmp_path / WEIGHTS).touch()
    (tmp_path / TOKENIZER).touch()
    with pytest.raises(ImportError, match=r"Install churn-assets\[embeddings\]"):
        Embedder(tmp_path)


def small_model(folder: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Files of the published form, whose vector of a token depends on nothing else: returned.

    Like the published tokenizer, it pads to 128 tokens and cuts there unless told otherwise.
    """
    onnx = pytest.importorskip("onnx", reason="onnx, which writes the small model, is missing")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = sorted({word for text in TEXTS for word in text.lower().replace(".", "").split()})
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[PAD]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=128, pad_id=1)
    tokenizer.enable_truncation(128)
    tokenizer.save(str(folder / TOKENIZER))

    table = np.random.default_rng(seed).normal(size=(len(vocabulary), 384)).astype(np.float32)
    tensor, helper = onnx.TensorProto, onnx.helper
    names = ["input_ids", "attention_mask", "token_type_ids"]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "small",
        [helper.make_tensor_value_info(n, tensor.INT64, ["batch", "tokens"]) for n in names],
        [
            helper.make_tensor_value_info(
                "last_hidden_state", tensor.FLOAT, ["batch", "tokens", 384]
            )
        ],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / WEIGHTS).parent.mkdir(exist_ok=True)
    (folder / WEIGHTS).write_bytes(model.SerializeToString())
    return dict(zip(vocabulary, table, strict=True))


@needs_embeddings
def test_an_embedding_is_the_mean_over_tokens_at_length_one(tmp_path: Path):
    vectors = small_model(tmp_path)
    long = "unknown " * (MOST_TOKENS - 56) + "for " * 100
    embeddings = Embedder(tmp_path).embed(["for", long])
    means = np.array([vectors["for"], 200 * vectors["[UNK]"] + 56 * vectors["for"]])
    assert np.allclose(embeddings, means / np.linalg.norm(means, axis=1, keepdims=True))


@needs_embeddings
def test_minilm_is_equal_in_every_batch_and_principal_components(tmp_path: Path):
    from sklearn.decomposition import PCA

    small_model(tmp_path)
    model = fit_text_vectors("minilm", TEXTS, SEED, tmp_path)
    assert isinstance(model, MinilmVectors)
    texts = NEW_TEXTS[-150:-4]
    whole = model.transform(texts)
    for size in (1, 7):
        starts = range(0, len(texts), size)
        parts = [model.transform(texts[start : start + size]) for start in starts]
        assert np.array_equal(np.vstack(parts), whole)
    embedder = Embedder(tmp_path)
    reference = PCA(DIMENSIONS).fit(embedder.embed(TEXTS)).transform(embedder.embed(texts))
    assert np.allclose(np.abs(whole), np.abs(reference), atol=1e-5)


@needs_embeddings
def test_minilm_refuses_other_weights(tmp_path: Path):
    small_model(tmp_path)
    model = fit_text_vectors("minilm", TEXTS, SEED, tmp_path)
    assert model is not None
    model.save(tmp_path / "vectors")
    loaded = load_text_vectors("minilm", tmp_path / "vectors", tmp_path)
    assert loaded.version == model.version
    assert np.array_equal(loaded.transform(TEXTS[:5]), model.transform(TEXTS[:5]))
    small_model(tmp_path, seed=1)
    with pytest.raises(ValueError, match="not the one that these vectors were fitted with"):
        load_text_vectors("minilm", tmp_path / "vectors", tmp_path).transform(TEXTS[:5])


@needs_embeddings
@pytest.mark.skipif("MINILM_DIR" not in os.environ, reason="MINILM_DIR names no folder")
def test_minilm_agrees_with_sentence_transformers():
    # Similarities as printed at https://www.sbert.net/docs/quickstart.html for this model.
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    embeddings = Embedder(Path(os.environ["MINILM_DIR"])).embed(texts)
    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    assert embeddings.shape == (3, 384)
    assert np.allclose(embeddings @ embeddings.T, expected, rtol=0, atol=1e-4)
