"""How fast review texts are scored, next to NLTK's own analyzer in the same run.

    python -m benchmarks.reviews [--texts 200000]

Distinct texts of the synthetic shop, joined to 30 words and more; one process scores a sample of
them. Rounds alternate between the three ways and the best one of each counts. The worst one on all
cores is usually the first, which starts the processes and imports NLTK in each.
"""

import argparse
import random
import time
from collections.abc import Sequence
from importlib import resources

import nltk.data
from nltk.sentiment.vader import SentimentIntensityAnalyzer

from churn_assets.sentiment import FEWEST_TEXTS_FOR_PROCESSES, score_all
from churn_assets.sources.review_texts import review_text

FEWEST_WORDS, MOST_WORDS = 30, 60
SAMPLE = 5_000  # NLTK takes 1.5 s for them
ROUNDS = 3


def long_texts(number: int) -> list[str]:
    """Distinct texts of 30 to 60 words, in moods of any kind."""
    rng = random.Random(7)
    texts: dict[str, None] = {}
    while len(texts) < number:
        text = ""
        while text.count(" ") + 1 < FEWEST_WORDS:
            text = f"{text} {review_text(rng, rng.randrange(500), rng.gauss(0, 1))}".strip()
        if text.count(" ") < MOST_WORDS:
            texts[text] = None
    return list(texts)


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
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, work, given in (
            ("NLTK, one process", score_with_nltk, sample),
            ("score_all, one process", score_all, sample),
            ("score_all, all cores", score_all, texts),
        ):
            began = time.perf_counter()
            work(given)
            rates.setdefault(name, []).append(len(given) / (time.perf_counter() - began))
    for name, each in rates.items():
        ratio = max(each) / max(rates["NLTK, one process"])
        print(f"{name:24} {max(each):8,.0f} texts/s, worst {min(each):8,.0f}   {ratio:4.1f} x NLTK")


if __name__ == "__main__":
    main()
