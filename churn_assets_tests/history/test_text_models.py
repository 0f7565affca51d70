"""What models over texts share: prevents words that are counted by other rules than they were
learned by, a fit that depends on the order or repetition of texts, and files that run code.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from churn_assets.history import text_models
from churn_assets.history.text_models import (
    MIN_TEXTS,
    MIN_TEXTS_PER_WORD,
    RULES,
    WordModel,
    learn_words,
    rounded,
    texts_to_fit,
    words,
)
from churn_assets_tests.conftest import review_texts


def test_words_are_those_of_these_rules():
    # Whoever changes this expectation raises RULES, which makes models refuse texts they misread.
    text = "It's the customer’s 2nd CAFÉ: don't re-order a T-shirt_x! 😀 Доставка <br>"
    expected = "its the customers nd café dont re order shirt доставка br"
    assert (RULES, words(text)) == (1, expected.split())


def test_forms_of_a_word_share_a_column_named_after_the_commonest():
    texts = (
        ["delivery delivery jacket"] * 3 + ["Deliveries, the"] * 2 + ["the lamps"] * 6 + ["x"] * 2
    )
    assert learn_words(texts).tolist() == ["lamps", "delivery deliveries"]


def test_a_word_of_too_few_or_too_many_texts_has_no_column():
    texts = [f"{first}{second} everywhere" for first in "bcdfghjklm" for second in "aeiou"]
    texts[:MIN_TEXTS_PER_WORD] = ["plenty rare"] * (MIN_TEXTS_PER_WORD - 1) + ["plenty"]
    assert learn_words(texts).tolist() == ["plenty"]


def test_counts_are_per_text_and_column():
    model = WordModel(np.array(["delivery deliveries", "lamp"]))
    texts = ["Lamp, lamp: deliveries of a delivery", "", "unknown lamp"]
    assert model.counts(texts).toarray().tolist() == [[2, 2], [0, 0], [0, 1]]


def test_texts_to_fit_are_distinct_and_in_an_order_of_their_own():
    texts = review_texts(300)
    assert texts_to_fit(iter(texts[::-1] * 2), most=250) == texts_to_fit(texts, most=250)
    assert len(set(texts_to_fit(texts, most=250))) == 250
    assert len(texts_to_fit(texts[:MIN_TEXTS] * 2, most=250)) == MIN_TEXTS
    assert texts_to_fit(texts[: MIN_TEXTS - 1] * 2, most=250) == []


def test_rounding_leaves_six_digits_and_no_negative_zero():
    assert str(rounded(np.array([-4e-7, 0.12345649])).tolist()) == "[0.0, 0.123456]"


def test_the_version_is_of_everything_learned():
    class Other(WordModel):
        pass

    forms = np.array(["delivery deliveries", "lamp"])
    versions = [WordModel(forms), WordModel(forms[::-1].copy()), WordModel(forms[:1]), Other(forms)]
    assert len({model.version for model in versions}) == 4
    assert WordModel(forms.copy()).version == WordModel(forms).version


def test_a_file_of_another_kind_or_of_other_rules_is_refused(tmp_path: Path, monkeypatch):
    class Other(WordModel):
        pass

    path = tmp_path / "model"
    WordModel(np.array(["lamp"])).save(path)
    assert WordModel.load(path).forms.tolist() == ["lamp"]
    with pytest.raises(ValueError, match="Fit the model again"):
        Other.load(path)
    monkeypatch.setattr(text_models, "RULES", RULES + 1)
    with pytest.raises(ValueError, match=f"word rules {RULES}, this code"):
        WordModel.load(path)


def test_a_file_with_pickled_objects_is_refused(tmp_path: Path):
    path = tmp_path / "model"
    with path.open("wb") as file:
        np.savez(file, kind="WordModel", rules=RULES, forms=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        WordModel.load(path)


def test_importing_the_models_imports_no_heavy_library():
    # The code location imports them, and every Dagster process waits for that.
    code = (
        "import sys, churn_assets.history.topics, churn_assets.history.text_vectors;"
        "print({'numpy', 'scipy', 'sklearn', 'nltk', 'torch'} & {*sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"
