"""Sentiment: prevents a score that is only nearly NLTK's, or that depends on what else is scored.

Another splitting of words is the tempting simplification: it agrees on well-behaved texts only.
NLTK's own analyzer, unchanged and with the same lexicon, is the reference.
"""

import os
import random
import string
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from churn_assets.history import sentiment
from churn_assets.history.sentiment import (
    FEWEST_TEXTS_FOR_PROCESSES,
    score,
    score_all,
    scorer_version,
)

# What the rules look for, and what disturbs a splitting into words.
RULES = (
    "but;least;at least;very least;the least;kind of;KIND OF;sort of;just enough;kind;of;so;this;"
    "never so;never this;without doubt;no;not;isn't;ISNT;uh-uh;n't;the bomb;the shit;bad ass;"
    "yeah right;cut the mustard;kiss of death;hand to mouth;love;good;GREAT;bad;horrible;sux"
)
STRANGE = (
    "the;of;a;I;ok;42;3.5;x2;e-mail;a.b;--;...;!?!?;(good);['bad'];'tis;:D;<3;:-);(:;}:-);"
    "<p>good</p>;<br/>;&amp;good;https://great.example/?bad=1;#good;@love;good/bad;good-bad;"
    "👍;😡😡;❤️;👩‍👩‍👧;schön;ÜBEL;ça;хорошо;плохо;素晴らしい;好;سيئ;İ;ß;ẞ;ǅ;ﬁne;e\u0301;“good”;bad…;good—bad;’s"
)
PRINT_VERSION = "from churn_assets.history import sentiment; print(sentiment.scorer_version())"
SEPARATORS = [*"     ", "  ", "\n", "\t", "", "\u00a0", "\u2028", "\x1c", "\x85", "\u200b", "\x00"]


def fuzzed(rng: random.Random, pools: list[list[str]], marks: list[str], words: int) -> str:
    """Words of any case with marks before and after, between separators of any kind."""
    pieces = []
    for _ in range(words):
        word = rng.choice(rng.choice(pools))
        chance = rng.random()
        if chance < 0.2:
            word = word.upper()
        elif chance < 0.3:
            word = word.title()
        elif chance < 0.5:
            word += rng.choice(marks)
        elif chance < 0.6:
            word = rng.choice(marks) + word
        elif chance < 0.65:
            word = rng.choice(marks) + word + rng.choice(marks)
        elif chance < 0.68:
            word = "".join(chr(rng.randrange(sys.maxunicode + 1)) for _ in range(3))
        elif chance < 0.7:
            word += chr(rng.randrange(0xD800, 0xE000)) + chr(rng.randrange(32))
        pieces.append(word + rng.choice(SEPARATORS))
    return "".join(pieces)


@pytest.fixture(scope="module")
def plain() -> Iterator:
    """NLTK's analyzer itself; the lexicon lies in a data folder of NLTK for as long as needed."""
    import nltk.data
    from nltk.sentiment.vader import SentimentIntensityAnalyzer

    folder = str(resources.files("vaderSentiment"))
    nltk.data.path.insert(0, folder)
    yield SentimentIntensityAnalyzer("vader_lexicon.txt")
    nltk.data.path.remove(folder)


@pytest.fixture(scope="module")
def pools(plain) -> list[list[str]]:
    modifiers = sorted(plain.constants.NEGATE | plain.constants.BOOSTER_DICT.keys())
    rules, strange = RULES.split(";"), STRANGE.split(";")
    return [sorted(plain.lexicon), modifiers, rules, rules, strange]


@pytest.fixture(scope="module")
def texts(plain, pools: list[list[str]]) -> list[str]:
    rng = random.Random(7)
    marks = [*plain.constants.PUNC_LIST, *string.punctuation, "....", "!!!!!", "?!", "*", "“", "…"]
    return [fuzzed(rng, pools, marks, rng.randint(1, 14)) for _ in range(50_000)]


def test_scores_of_any_text_equal_plain_nltk(plain, texts: list[str]):
    different = [t for t in texts if score(t) != plain.polarity_scores(t)["compound"]]
    assert different == []


def test_scores_of_long_texts_equal_plain_nltk(plain, pools: list[list[str]], texts: list[str]):
    rng = random.Random(8)
    for text in (
        " ".join(rng.choice(pools[0]) for _ in range(14_000)),
        " ".join(texts[:2_000]),
        *("x" * 100_000, "!" * 100_000, " " * 100_000, "GOOD " * 20_000, "not good, " * 10_000),
        *("but " * 25_000, "good." * 20_000, "\x00" * 100_000, "\ud800" * 100_000),
    ):
        assert len(text) >= 100_000
        assert score(text) == plain.polarity_scores(text)["compound"]


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("VADER is VERY SMART, really handsome, and INCREDIBLY FUNNY!!!", 0.9469),
        ("The book was kind of good.", 0.3832),
        ("At least it isn't a horrible book.", 0.431),
        (":) and :D", 0.7925),
        ("Today kinda sux! But I'll get by, lol", 0.5249),
        ("", 0.0),
    ],
)
def test_scores_are_those_of_nltks_documentation(text: str, published: float):
    assert score(text) == published


def test_only_a_missing_text_has_no_score():
    assert score(None) is None
    assert score_all(["", None, "good"]) == [0.0, None, score("good")]
    assert score_all([]) == []


def test_scores_are_the_same_from_processes_and_in_the_order_of_the_texts(texts: list[str]):
    many = [None, *texts[:FEWEST_TEXTS_FOR_PROCESSES]]
    assert score_all(many) == [score(text) for text in many]


def test_the_version_names_lexicon_nltk_and_code(tmp_path: Path):
    """Each change in an installation of its own, found before the one of this environment."""

    root = Path(__file__).parents[2]
    code = Path(sentiment.__file__).read_text(encoding="utf-8")
    installations: dict[str, dict[str, str]] = {
        "as it is": {},
        "lexicon": {
            "vaderSentiment/__init__.py": "",
            "vaderSentiment/vader_lexicon.txt": "good\t1.9",
        },
        "nltk": {"nltk-99.dist-info/METADATA": "Name: nltk\nVersion: 99\n"},
        "code": {
            **{
                str(file.relative_to(root)): file.read_text(encoding="utf-8")
                for file in (root / "churn_assets").rglob("*.py")
            },
            "churn_assets/history/sentiment.py": code.replace("len(word) > 1", "len(word) > 2"),
        },
    }
    versions = {}
    for change, files in installations.items():
        for name, content in files.items():
            (tmp_path / change / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / change / name).write_text(content, encoding="utf-8")
        path = os.pathsep.join((str(tmp_path / change), str(root)))
        versions[change] = subprocess.run(
            [sys.executable, "-c", PRINT_VERSION],
            capture_output=True,
            check=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path},
            text=True,
        ).stdout.strip()
    assert versions["as it is"] == scorer_version()
    assert len(set(versions.values())) == len(installations)
