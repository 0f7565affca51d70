"""How positive a text is: the compound score of VADER, exactly as NLTK computes it.

One score per text, from -1 (most negative) to 1 (most positive), rounded to 4 digits; a text
without a charged word, such as the empty one, scores 0.0. Source: Hutto & Gilbert (2014), "VADER: A
Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", with the rules of
`nltk.sentiment.vader` and the lexicon of the `vaderSentiment` wheel, whose own analyzer scores
differently. The lexicon is English: most texts in other languages score 0.0.

NLTK's own code judges the charged words. The splitting into words is done here, because NLTK's
joins every word of a text with every punctuation mark, which takes three quarters of its time.
"""

import hashlib
import string
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata, resources
from itertools import chain
from types import SimpleNamespace

from churn_assets.stores.provenance import code_digest

# Each process imports NLTK first (3 s), as this one would, and scores 14,000 texts of 45 words in a
# second. Batches are large enough to hide their transport and many enough to share the cores.
FEWEST_TEXTS_FOR_PROCESSES = 20_000
BATCH = 5_000

# As NLTK's pattern does, which gives up after 5 s by the clock.
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def scorer_version() -> str:
    """What scores depend on, as 12 hex digits: the lexicon, NLTK, this module and Python.

    Python's version brings the Unicode tables and, since 3.12, a `sum` that rounds differently.
    """
    parts = (
        lexicon_text(),
        metadata.version("nltk"),
        f"{sys.version_info.major}.{sys.version_info.minor}",
        code_digest(sys.modules[__name__]),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def score(text: str | None) -> float | None:
    """The compound score of a text, -1 to 1 with 4 digits; an empty text scores 0.0.

    Every string has a score, whatever its length, language and code points. Only a missing text
    (None) has none: None.
    """
    return None if text is None else scorer()(text)


def score_all(texts: Sequence[str | None]) -> list[float | None]:
    """The score of each text, in the order given; from 20,000 texts on, all cores share them."""
    if len(texts) < FEWEST_TEXTS_FOR_PROCESSES:
        return [score(text) for text in texts]

    from joblib import Parallel, delayed

    batches = Parallel(n_jobs=-1)(
        delayed(score_all)(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)
    )
    return list(chain.from_iterable(batches))


def lexicon_text() -> str:
    """Lines of word, mean valence (-4 to 4), standard deviation and raw ratings, tab-separated."""
    return (resources.files("vaderSentiment") / "vader_lexicon.txt").read_text(encoding="utf-8")


@cache
def scorer() -> Callable[[str], float]:
    """The function from text to compound score; made once per process, as it loads NLTK."""
    from nltk.sentiment.vader import SentimentIntensityAnalyzer, VaderConstants

    class Analyzer(SentimentIntensityAnalyzer):
        """NLTK's own refuses a lexicon outside its data folders."""

        def __init__(self) -> None:
            self.lexicon_file = lexicon_text()
            self.lexicon = self.make_lex_dict()
            self.constants = VaderConstants()

    analyzer = Analyzer()
    judge = analyzer.sentiment_valence
    marks = frozenset(analyzer.constants.PUNC_LIST)

    def bare(token: str) -> str:
        """A word of 2 characters or more, without the one mark before or after it.

        With marks on both sides or within, or with others than NLTK's, a token stays as it is.
        """
        if token.isalnum():
            return token
        word = token.translate(NO_PUNCTUATION)
        if len(word) > 1:
            before, _, after = token.partition(word)
            if (before in marks and not after) or (after in marks and not before):
                return word
        return token

    def compound(text: str) -> float:
        words = [bare(token) for token in text.split() if len(token) > 1]
        lowered = [word.lower() for word in words]
        context = SimpleNamespace(
            words_and_emoticons=words,
            # NLTK asks for it at words in capitals only, so there is one.
            is_cap_diff=not all(map(str.isupper, words)),
        )
        valences: dict[str, float] = {}
        for place, word in enumerate(words):
            # As in NLTK, the surroundings of a word's first occurrence count for all of them.
            if lowered[place] in analyzer.lexicon and word not in valences:
                kind_of = lowered[place : place + 2] == ["kind", "of"]
                valences[word] = 0.0 if kind_of else judge(0, context, word, place, [])[0]
        sentiments = [valences.get(word, 0.0) for word in words]
        if "but" in lowered:
            analyzer._but_check(words, sentiments)
        return float(analyzer.score_valence(sentiments, text)["compound"])

    return compound
