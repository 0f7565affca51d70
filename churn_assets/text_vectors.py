"""Sixteen numbers per review text that keep what tells texts apart, by one of two methods.

- `lsa`: TF-IDF weights of words, reduced by a truncated singular value decomposition (Deerwester
  et al., "Indexing by Latent Semantic Analysis", JASIS 41 (1990)). Needs nothing but the texts.
- `minilm`: sentence embeddings of all-MiniLM-L6-v2 (384 numbers), reduced by principal components.
  Needs the extra `embeddings` and a folder with the model's files; nothing is ever downloaded.

Both are fitted once, on texts from before the first cutoff, and frozen, like topics. A dimension
has no meaning of its own, and those of two models cannot be compared. `lsa` knows English stop
words and stems; `minilm` is an English model too, and reads the first 256 tokens.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from churn_assets.text_models import TextModel, WordModel, learn_words, rounded, texts_to_fit

if TYPE_CHECKING:
    import numpy as np

Method = Literal["lsa", "minilm"]

DIMENSIONS = 16

# Fitting takes 0.3 s.
MOST_LSA_TEXTS = 5_000
# Five texts for each number of an embedding; each takes tens of milliseconds.
MOST_MINILM_TEXTS = 2_000

# As published: tokenizer and weights by their names, the length by `sentence_bert_config.json`.
TOKENIZER = "tokenizer.json"
WEIGHTS = "onnx/model.onnx"
MOST_TOKENS = 256


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
        folder: Where the model's files are; not saved, because it differs between machines.
        files: A digest of these files, as str of shape (); others are refused.
        mean: Of the embeddings of the fitted texts, shape (embedding,).
        components: The principal directions, shape (DIMENSIONS, embedding).
    """

    folder: Path
    files: "np.ndarray"
    mean: "np.ndarray"
    components: "np.ndarray"
    width: ClassVar[int] = DIMENSIONS

    @classmethod
    def fit(cls, texts: Iterable[str], folder: Path) -> "MinilmVectors | None":
        """Fit on texts; None where they are too few."""
        import numpy as np
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits

        chosen = texts_to_fit(texts, MOST_MINILM_TEXTS)
        if not chosen:
            return None
        embeddings = Embedder(folder).embed(chosen)
        with threadpool_limits(limits=1):
            pca = PCA(DIMENSIONS, svd_solver="covariance_eigh").fit(embeddings)
        return cls(folder, np.array(_digest(folder)), pca.mean_, pca.components_)

    def vectors(self, texts: Sequence[str]) -> "np.ndarray":
        """Coordinates between -2 and 2."""
        import numpy as np

        centred = self._embedder.embed(texts) - self.mean
        # A product per text and direction: a matrix product adds in an order that depends on its
        # shape.
        return rounded(np.vecdot(centred[:, None], self.components))

    @cached_property
    def _embedder(self) -> "Embedder":
        embedder = Embedder(self.folder)
        if _digest(self.folder) != str(self.files):
            raise ValueError(
                f"The model in {self.folder} is not the one that these vectors were fitted with, "
                "so they would mean something else. Put its files back or fit the vectors again."
            )
        return embedder


class Embedder:
    """Sentence embeddings as sentence-transformers makes them from this model's files.

    Raises:
        FileNotFoundError: The folder does not have them.
        ImportError: The extra `embeddings` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        for path in (folder / TOKENIZER, folder / WEIGHTS):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is missing: `minilm` needs the published files of all-MiniLM-L6-v2 "
                    f"({TOKENIZER} and {WEIGHTS}) and downloads nothing. Put them there, set "
                    "CHURN_MINILM_DIR to their folder, or use `lsa`."
                )
        try:
            import onnxruntime
            import tokenizers
        except ImportError as error:
            raise ImportError(
                f"{error}: `minilm` needs it. Install churn-assets[embeddings], or use `lsa`."
            ) from error

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            folder / WEIGHTS, options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
        # The published file pads to 128 tokens and cuts there.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MOST_TOKENS)

    def embed(self, texts: Sequence[str]) -> "np.ndarray":
        """The mean of the vectors of a text's tokens, at length 1: shape (texts, embedding).

        One text at a time: float32 sums in a batch depend on how it is padded, in the 7th digit.
        """
        import numpy as np

        embeddings = []
        for text in texts:
            encoding = self._tokenizer.encode(text)
            inputs = {
                "input_ids": encoding.ids,
                "attention_mask": encoding.attention_mask,
                "token_type_ids": encoding.type_ids,
            }
            tokens = self._session.run(None, {k: np.array([v]) for k, v in inputs.items()})[0][0]
            mean = tokens.mean(axis=0, dtype=np.float64)
            embeddings.append(mean / np.linalg.norm(mean))
        return np.array(embeddings)


def fit_text_vectors(
    method: Method, texts: Iterable[str], seed: int, folder: Path | None = None
) -> LsaVectors | MinilmVectors | None:
    """Fit on texts; None where there are too few distinct ones (see `texts_to_fit`).

    Equal texts, in any order and however often repeated, and an equal seed give an equal model.

    Args:
        method: `lsa` or `minilm`.
        texts: From before the first cutoff.
        seed: For `lsa`; `minilm` draws nothing at random.
        folder: For `minilm`: where the files of all-MiniLM-L6-v2 are.
    """
    if method == "lsa":
        return LsaVectors.fit(texts, seed)
    return MinilmVectors.fit(texts, _required(folder))


def load_text_vectors(
    method: Method, path: Path, folder: Path | None = None
) -> LsaVectors | MinilmVectors:
    """The model that was saved under `path`, see `TextModel.load`."""
    if method == "lsa":
        return LsaVectors.load(path)
    return MinilmVectors.load(path, folder=_required(folder))


def _required(folder: Path | None) -> Path:
    if folder is None:
        raise ValueError(
            "The method `minilm` needs the files of all-MiniLM-L6-v2 and no folder is given. Set "
            "CHURN_MINILM_DIR to their folder, or use `lsa`."
        )
    return folder


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (TOKENIZER, WEIGHTS):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()
