"""Topics of review texts: latent Dirichlet allocation, fitted once and frozen.

Blei, Ng & Jordan, "Latent Dirichlet Allocation", JMLR 3 (2003); fitted by scikit-learn's batch
variational Bayes (Hoffman, Blei & Bach, "Online Learning for LDA", NIPS 2010). A text's vector is
the mean of its distribution over topics given its words.

Topics have no order or name of their own, and another seed, thread count or set of texts gives
others: vectors of two models cannot be compared, `match_topics` says which topics resemble each
other. Known limits: English stop words and stems; no phrases, no negation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from churn_assets.history.text_models import WordModel, learn_words, rounded, texts_to_fit

if TYPE_CHECKING:
    import numpy as np

TOPICS = 10

# How well topics find the eight subjects that texts of the synthetic shop are about (normalised
# mutual information, mean of three seeds, inflected words; CPU seconds): 2,000 texts .65 (3),
# 5,000 .68 (8), 10,000 .71 (16). 50 passes instead of 20: 5,000 .67 (16). Online updates in 10
# passes: 5,000 .53 (4), with the offset 50 .63 (4).
MOST_TEXTS = 5_000
PASSES = 20

# scikit-learn's default: a text is about few topics.
TOPIC_PRIOR = 1 / TOPICS

# scikit-learn's defaults for when a text's weights stand still.
MEAN_CHANGE = 1e-3
MAX_ITERATIONS = 100


@dataclass(frozen=True, eq=False)
class TopicModel(WordModel):
    """A fitted topic model.

    Args:
        components: How often each topic is expected to have given each column's words, plus the
            prior, shape (TOPICS, columns); each row over its sum is a distribution over words.
    """

    components: "np.ndarray"
    width: ClassVar[int] = TOPICS

    def vectors(self, texts: Sequence[str]) -> "np.ndarray":
        """Shares of the topics in each text: a row adds up to 1.000000 as decimals.

        A text without any known word (empty, only emoji, another language) gets what its model
        says without evidence: 0.1 for every topic.
        """
        import numpy as np

        shares = self.weights(texts)
        shares /= shares.sum(axis=1, keepdims=True)
        shares = rounded(shares)
        # The largest share takes what rounding leaves, at most 5 millionths.
        largest = np.arange(len(texts)), shares.argmax(axis=1)
        shares[largest] += 1 - shares.sum(axis=1)
        return rounded(shares)

    def weights(self, texts: Sequence[str]) -> "np.ndarray":
        """The parameters of each text's Dirichlet distribution over topics, shape (texts, TOPICS).

        The E-step of scikit-learn's `LatentDirichletAllocation.transform` for all texts at once:
        phi[word, topic] ~ exp(E[log theta]) * exp(E[log beta]) (equation 5 of Hoffman et al.),
        repeated until a text's weights move by less than MEAN_CHANGE. Every sum is made within one
        text and in the order of columns, so a text's weights do not depend on the others.
        """
        import numpy as np
        from scipy.sparse import csr_array
        from scipy.special import psi

        counts = self.counts(texts)
        settled = np.empty((len(texts), TOPICS))
        moving, weights = np.arange(len(texts)), np.ones((len(texts), TOPICS))
        for _ in range(MAX_ITERATIONS):
            if not len(moving):
                break
            theta = np.exp(psi(weights))  # but for a factor per text, which cancels out
            text_of_word = np.repeat(np.arange(len(moving)), np.diff(counts.indptr))
            total = np.vecdot(theta[text_of_word], self.beta[counts.indices])
            explained = csr_array(
                (counts.data / total, counts.indices, counts.indptr), counts.shape
            )
            previous, weights = weights, TOPIC_PRIOR + theta * (explained @ self.beta)
            settled[moving] = weights
            unsettled = np.abs(weights - previous).mean(axis=1) >= MEAN_CHANGE
            moving, weights, counts = moving[unsettled], weights[unsettled], counts[unsettled]
        return settled

    def top_words(self, n: int = 8) -> list[list[str]]:
        """The n most probable words of each topic, for people."""
        import numpy as np

        order = np.argsort(-self.components, axis=1, kind="stable")[:, :n]
        return [[self.names[column] for column in row] for row in order]

    @cached_property
    def beta(self) -> "np.ndarray":
        """exp(E[log beta]), shape (columns, TOPICS)."""
        import numpy as np
        from scipy.special import psi

        totals = self.components.sum(axis=1, keepdims=True)
        return np.ascontiguousarray(np.exp(psi(self.components) - psi(totals)).T)


def fit_topics(texts: Iterable[str], seed: int) -> TopicModel | None:
    """Fit topics on texts; None where there are too few distinct ones, or no word they share.

    Equal texts, in any order and however often repeated, and an equal seed give an equal model.
    """
    import numpy as np
    from sklearn.decomposition import LatentDirichletAllocation
    from threadpoolctl import threadpool_limits

    chosen = texts_to_fit(texts, MOST_TEXTS)
    forms = learn_words(chosen)
    if not len(forms):
        return None
    lda = LatentDirichletAllocation(
        TOPICS,
        doc_topic_prior=TOPIC_PRIOR,
        max_iter=PASSES,
        random_state=seed,
        n_jobs=1,
    )
    with threadpool_limits(limits=1):
        lda.fit(WordModel(forms).counts(chosen))
    return TopicModel(forms, np.asarray(lda.components_))


def match_topics(old: TopicModel, new: TopicModel) -> list[tuple[int, int, float]]:
    """Which topic of a refitted model resembles which old one: (old, new, similarity), by old.

    Similarity is the Bhattacharyya coefficient of their distributions over words, 1 where they are
    equal and 0 where they share no word. Topics are assigned one to one so that the sum is largest.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    shared = [name for name in old.names if name in new.columns]

    def roots(model: TopicModel) -> np.ndarray:
        columns = [model.columns[name] for name in shared]
        shares = model.components / model.components.sum(axis=1, keepdims=True)
        return np.asarray(np.sqrt(shares[:, columns]))

    similarity = roots(old) @ roots(new).T
    pairs = zip(*linear_sum_assignment(similarity, maximize=True), strict=True)
    return [(int(a), int(b), float(similarity[a, b])) for a, b in pairs]
