"""What models over review texts share: which texts they are fitted on, the words they know, a file.

A model is fitted once, on texts from before the first cutoff, and frozen: its vectors are compared
across cutoffs. Whatever fitting has learned is in its arrays, so a text gives equal numbers in
every run, process and batch, and its stop words and stems do not change with a library.

Words are in the language of the texts; stop words and stems are English. Knows no Dagster, cutoffs
or tables.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from heapq import nsmallest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array

# Of `words`. A fitted model counts words by the rules that it was fitted with or not at all.
RULES = 1

_WORD = re.compile(r"[^\W\d_]{2,}")

# With fewer, each of ten topics would be learned from less than twenty texts.
MIN_TEXTS = 200
# A word of fewer texts cannot be placed in a topic; one of more than half of them tells none apart.
MIN_TEXTS_PER_WORD = 5
MAX_SHARE_PER_WORD = 0.5
# The commonest 5,000 stems cover nearly every word of reviews, and their weights fit the cache.
MOST_WORDS = 5_000

# Texts transformed at a time: memory stays flat; 200 took 60 % more time per text, 4,000 10 % less.
CHUNK = 1_000

# Vectors have the 6 digits of a DECIMAL(7, 6), so that their means are exact.
DIGITS = 6


def words(text: str) -> list[str]:
    """The words of a text in order: lower case, letters only, two or more, no apostrophes."""
    return _WORD.findall(text.lower().replace("'", "").replace("’", ""))


def texts_to_fit(texts: Iterable[str], most: int) -> list[str]:
    """Distinct texts in the order of their MD5: the first `most`, or none below MIN_TEXTS.

    The order is fixed and says nothing about a text, so the first ones are a fair sample.
    """
    distinct = set(texts)
    if len(distinct) < MIN_TEXTS:
        return []
    return nsmallest(most, distinct, key=lambda text: hashlib.md5(text.encode()).digest())


def learn_words(texts: Sequence[str]) -> "np.ndarray":
    """The forms of each frequent stem, separated by spaces, as str of shape (stems,).

    Stems come from NLTK's English Snowball stemmer, stop words from scikit-learn. The commonest
    stem is first, and so is the commonest form of each, which stands for it where people read.
    """
    import numpy as np
    from nltk.stem.snowball import SnowballStemmer
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    # Measured by how well topics find subjects (see `topics`), 2,000 texts: words as they are .51,
    # these stems .65, lemmas of simplemma (a dependency of 19 MB) .66.
    stemmer = SnowballStemmer("english")
    found = [set(words(text)) - ENGLISH_STOP_WORDS for text in texts]
    texts_of_form = Counter(form for text in found for form in text)
    stem_of = {form: stemmer.stem(form) for form in texts_of_form}
    texts_of_stem = Counter(stem for text in found for stem in {stem_of[form] for form in text})
    forms = defaultdict(list)
    for form in sorted(stem_of, key=lambda form: (-texts_of_form[form], form)):
        forms[stem_of[form]].append(form)
    most_texts = MAX_SHARE_PER_WORD * len(texts)
    kept = [s for s, n in texts_of_stem.items() if MIN_TEXTS_PER_WORD <= n <= most_texts]
    kept.sort(key=lambda stem: (-texts_of_stem[stem], stem))
    return np.array([" ".join(forms[stem]) for stem in kept[:MOST_WORDS]], dtype=np.str_)


def count_words(texts: Sequence[str], columns: dict[str, int], width: int) -> "csr_array":
    """How often each text has the words of each column, float64 of shape (texts, width)."""
    import numpy as np
    from scipy.sparse import csr_array

    found = [[columns[word] for word in words(text) if word in columns] for text in texts]
    ends = np.cumsum([0, *map(len, found)])
    indices = np.array([column for row in found for column in row], dtype=np.int32)
    counts = csr_array((np.ones(len(indices)), indices, ends), shape=(len(texts), width))
    counts.sum_duplicates()
    return counts


def rounded(values: "np.ndarray") -> "np.ndarray":
    """`values` rounded to DIGITS, without negative zeros."""
    return values.round(DIGITS) + 0.0


@dataclass(frozen=True, eq=False)
class TextModel:
    """A frozen model that turns texts into vectors; subclasses add its arrays as fields."""

    width: ClassVar[int]
    """Numbers per text."""

    def vectors(self, texts: Sequence[str]) -> "np.ndarray":
        """Vectors of a few texts, each of which must not depend on the others."""
        raise NotImplementedError

    def transform(self, texts: Sequence[str]) -> "np.ndarray":
        """Vectors of shape (texts, width), float64 with 6 digits, whatever the batch."""
        import numpy as np

        vectors = np.empty((len(texts), self.width))
        for start in range(0, len(texts), CHUNK):
            vectors[start : start + CHUNK] = self.vectors(texts[start : start + CHUNK])
        return vectors

    @cached_property
    def version(self) -> str:
        """A digest of everything that decides its vectors."""
        digest = hashlib.sha256(f"{type(self).__name__} {RULES}".encode())
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write its arrays as an .npz file, under exactly this name."""
        import numpy as np

        with path.open("wb") as file:
            np.savez_compressed(file, kind=type(self).__name__, rules=RULES, **self._arrays())

    @classmethod
    def load(cls, path: Path) -> Self:
        """The inverse of `save`.

        Raises:
            ValueError: It is another kind of model, or counts words by other rules.
        """
        import numpy as np

        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        kind, rules = str(arrays.pop("kind")), int(arrays.pop("rules"))
        if (kind, rules) != (cls.__name__, RULES):
            raise ValueError(
                f"{path} is a {kind} with word rules {rules}, this code reads a {cls.__name__} "
                f"with word rules {RULES}. Fit the model again, or use the release that wrote it."
            )
        return cls(**arrays)

    def _arrays(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class WordModel(TextModel):
    """A model over counts of words.

    Args:
        forms: The words of each column, the commonest first, separated by spaces.
    """

    forms: "np.ndarray"

    def counts(self, texts: Sequence[str]) -> "csr_array":
        """How often each text has the words of each column."""
        return count_words(texts, self.columns, len(self.forms))

    @cached_property
    def names(self) -> list[str]:
        """The word that stands for each column."""
        return [str(forms).split()[0] for forms in self.forms]

    @cached_property
    def columns(self) -> dict[str, int]:
        """The column of each known word."""
        return {form: i for i, forms in enumerate(self.forms) for form in str(forms).split()}
