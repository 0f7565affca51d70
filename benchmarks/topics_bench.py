"""How fast texts become topic vectors, against scikit-learn's own transform of the same model.

    python -m benchmarks.topics_bench [--texts 20000]

Reviews of the synthetic shop, 30 to 60 words each. Both sides count words in the same way and use
one core; the rounds alternate, so that other work on the machine slows both, and the best counts.
"""

import argparse
import random
import resource
import time
from collections.abc import Callable, Iterator

import numpy as np
from sklearn.decomposition import LatentDirichletAllocation
from threadpoolctl import threadpool_limits

from churn_assets.sources.review_texts import review_text
from churn_assets.text_models import CHUNK
from churn_assets.topics import TOPICS, TopicModel, fit_topics

SEED = 7
ROUNDS = 3


def long_reviews(count: int) -> Iterator[str]:
    """Reviews in random moods, put together until they have at least 30 words, cut at 60."""
    rng = random.Random(SEED)
    for product in range(count):
        words: list[str] = []
        while len(words) < 30:
            words += review_text(rng, product, rng.gauss(0, 1)).split()
        yield " ".join(words[:60])


def as_scikit_learn(model: TopicModel) -> LatentDirichletAllocation:
    """The same model as a scikit-learn estimator: fitted in form, then given the components."""
    lda = LatentDirichletAllocation(TOPICS, max_iter=1).fit(model.counts(["lamp"]))
    lda.components_ = model.components
    lda.exp_dirichlet_component_ = np.ascontiguousarray(model.beta.T)
    return lda


def seconds(transform: Callable[[list[str]], np.ndarray], texts: list[str]) -> float:
    began = time.perf_counter()
    for start in range(0, len(texts), CHUNK):
        transform(texts[start : start + CHUNK])
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=20_000)
    texts = list(long_reviews(parser.parse_args().texts))
    print(f"{len(texts):,} texts of {np.mean([len(t.split()) for t in texts]):.0f} words")

    began = time.perf_counter()
    model = fit_topics(texts, SEED)
    assert model is not None
    print(f"fit: {time.perf_counter() - began:.1f} s, {len(model.forms):,} columns")
    lda = as_scikit_learn(model)
    sides: dict[str, Callable[[list[str]], np.ndarray]] = {
        "counting words": lambda some: model.counts(some).data,
        "TopicModel.transform": model.transform,
        "scikit-learn transform": lambda some: lda.transform(model.counts(some)),
    }
    with threadpool_limits(limits=1):
        taken = [{side: seconds(run, texts) for side, run in sides.items()} for _ in range(ROUNDS)]
    for side in sides:
        print(f"{side:24} {len(texts) / min(one[side] for one in taken):8,.0f} texts/s")
    apart = np.abs(model.transform(texts) - lda.transform(model.counts(texts))).max()
    print(f"largest difference {apart:.1e}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
