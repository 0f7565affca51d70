"""Vectors of review texts as features: prevents a setting that changes the declarations but not the
rows, vectors that know texts from after the first cutoff, and numbers of two methods in one column.
"""

import datetime as dt
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import yaml

from churn_assets.definitions import build_definitions
from churn_assets.features.review import review_group
from churn_assets.history.text_vectors import (
    DIMENSIONS,
    Method,
    fit_text_vectors,
    load_text_vectors,
)
from churn_assets.history.topic_model import VECTORS_FILE, TopicManifest, find_topics, load_models
from churn_assets.models.artefacts import ModelStore
from churn_assets.operations.installation import tables
from churn_assets.predictions.reasons import SENTENCES
from churn_assets.settings import Settings
from churn_assets_tests.conftest import make_settings, materialize, query, stored
from churn_assets_tests.history.test_reviews import ODD_TEXTS, raw, scored, texts_of, write_reviews
from churn_assets_tests.history.test_text_vectors import needs_embeddings

NAMES = [f"embedding_vector_{i}" for i in range(DIMENSIONS)]
EARLY, LATE, FEW = texts_of(1, 210), texts_of(2, 15), texts_of(3, 20)


def shop(folder: Path) -> Settings:
    return make_settings(
        folder,
        start=dt.date(2025, 1, 1),
        end=dt.datetime(2025, 6, 1, tzinfo=dt.UTC),
        review_vectors=folder.parent.name,
    )


def write_shops(folder: Path) -> None:
    """`plain`; `more`, which has further texts after the first cutoff 2025-04-01; `few` texts."""
    dated: list[tuple[str, str | None]] = [
        (f"2025-0{1 + i % 3}-{1 + i % 28:02}", text) for i, text in enumerate([*EARLY, *ODD_TEXTS])
    ]
    dated += [("2025-04-05", text) for text in [*EARLY[:9], *LATE[:10], *ODD_TEXTS]]
    for name in ("plain", "more"):
        write_reviews(shop(folder / name), dated, "a")
    write_reviews(shop(folder / "more"), [("2025-05-05", text) for text in LATE], "later")
    write_reviews(shop(folder / "few"), [("2025-01-05", text) for text in FEW], "a")


def run_shops(folder: Path) -> None:
    """Run them as far as the tests look, `plain` twice."""
    slices, cutoffs = ("2025-01-01", "2025-05-01"), ("2025-04-01", "2025-05-01")
    materialize(shop(folder / "few"), "ingest", *slices)
    materialize(shop(folder / "more"), "ingest", *slices)
    materialize(shop(folder / "more"), "features", *cutoffs)
    for name in ("first", "second"):
        materialize(shop(folder / "plain"), "ingest", *slices)
        for job in ("features", "training_data"):
            materialize(shop(folder / "plain"), job, *cutoffs)
        for file in [*(folder / "plain" / "state" / "offline_store").rglob("part-0.parquet")]:
            file.with_name(name).write_bytes(file.read_bytes())


@pytest.fixture(scope="module", params=["lsa", pytest.param("minilm", marks=needs_embeddings)])
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


@pytest.fixture(scope="module")
def shops(method: Method, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shops") / method
    write_shops(folder)
    run_shops(folder)
    return folder


def manifest_of(settings: Settings) -> TopicManifest:
    manifest = find_topics(ModelStore(settings.home))
    assert manifest is not None
    return manifest


def test_vectors_are_those_of_the_model_fitted_on_texts_before_the_first_cutoff(
    shops: Path, method: Method
) -> None:
    plain = shop(shops / "plain")
    manifest = manifest_of(plain)
    topics_version, vectors_version = manifest.version.split("-")
    fitted = fit_text_vectors(
        method, [*EARLY, *(text for text in ODD_TEXTS if text is not None)], plain.seed
    )
    assert fitted is not None
    assert vectors_version == fitted.version != topics_version
    folder = plain.home / "models" / "review_topic_model" / manifest.version
    model = load_text_vectors(method, folder / VECTORS_FILE)
    rows, texts = scored(plain), raw(plain)
    assert rows.keys() == texts.keys()
    with_text = [review_id for review_id in rows if texts[review_id]["text"] is not None]
    expected = model.transform([texts[review_id]["text"] for review_id in with_text])
    assert [[float(rows[i][name]) for name in NAMES] for i in with_text] == expected.tolist()
    assert all(rows[i][name] is None for i in rows.keys() - {*with_text} for name in NAMES)


def test_features_are_exact_means_of_reviews_before_the_cutoff(shops: Path) -> None:
    plain = shop(shops / "plain")
    reviews = scored(plain).values()
    dataset = stored(plain, "training_dataset")
    assert {row["cutoff"].isoformat() for row in dataset} == {"2025-04-01", "2025-05-01"}
    for row in dataset:
        own = [
            review
            for review in reviews
            if review["customer_id"] == row["customer_id"]
            and review["review_timestamp"].date() < row["cutoff"]
            and review["sentiment_score"] is not None
        ]
        for name in NAMES:
            values: list[Decimal] = [review[name] for review in own]
            assert row[name] == float(sum(values)) / len(values)


def test_the_columns_are_declared_everywhere(shops: Path, method: Method) -> None:
    columns = query(
        "SELECT column_name, column_type FROM (DESCRIBE FROM read_parquet("
        f"'{shops}/plain/state/offline_store/training_dataset/**/part-0.parquet'))"
    )
    types = {row["column_name"]: row["column_type"] for row in columns}
    assert [types[name] for name in NAMES] == ["DOUBLE"] * DIMENSIONS
    registry = yaml.safe_load((shops / "plain" / "state" / "feature_registry.yaml").read_text())
    declared = {f["name"]: f for view in registry["feature_views"] for f in view["features"]}
    assert method in declared[NAMES[-1]]["description"]


def test_neither_models_nor_rows_know_later_texts(shops: Path) -> None:
    plain, more = shop(shops / "plain"), shop(shops / "more")
    assert manifest_of(plain) == manifest_of(more)
    assert len(scored(more)) > len(scored(plain))
    for file in ("scored_reviews/slice=2025-04-01", "customer_review_features/cutoff=2025-05-01"):
        path = Path("offline_store") / file / "part-0.parquet"
        assert (plain.home / path).read_bytes() == (more.home / path).read_bytes()


def test_a_second_run_writes_the_same_bytes(shops: Path) -> None:
    files = list((shops / "plain" / "state" / "offline_store").rglob("first"))
    assert {"training_dataset", "scored_reviews"} <= {file.parts[-3] for file in files}
    assert all(f.read_bytes() == f.with_name("second").read_bytes() for f in files)


def test_too_few_texts_have_no_vectors(shops: Path) -> None:
    few = shop(shops / "few")
    assert not manifest_of(few).has_vectors
    assert {row[name] for row in scored(few).values() for name in NAMES} == {None}


def test_models_of_another_setting_are_refused(shops: Path, method: Method) -> None:
    store = ModelStore(shop(shops / "plain").home)
    with pytest.raises(ValueError, match=f"is none, and the models .* were fitted with {method}"):
        load_models(store, manifest_of(shop(shops / "plain")), "none")


def test_a_graph_has_the_tables_of_its_own_settings(tmp_path: Path) -> None:
    for vectors in ("lsa", "none", "minilm"):
        settings = make_settings(tmp_path, review_vectors=vectors)
        declared = tables(settings)["training_dataset"].column_names
        assert set(NAMES) <= set(declared) if vectors != "none" else set(NAMES).isdisjoint(declared)
        specs = {s.key.path[-1]: s for s in build_definitions(settings).resolve_all_asset_specs()}
        schema = specs["training_dataset"].metadata["dagster/column_schema"]
        assert [column.name for column in schema.columns] == declared


def test_numbers_of_two_methods_are_two_versions_of_a_feature_and_one_reason() -> None:
    groups = [review_group("lsa"), review_group("minilm")]
    told = [SENTENCES.get(feature.name) for feature in groups[0].features]
    assert told.count("Wording of own reviews") == 16
    versions = [[*map(group.version, group.features)] for group in groups]
    same = np.array(versions[0]) == np.array(versions[1])
    assert (same.sum(), len(same)) == (len(same) - DIMENSIONS, 16 + DIMENSIONS)
