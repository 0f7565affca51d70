"""Prevents: a parser that reads a row otherwise under the same version, so that no slice is stale.

The files below stand for what deliveries write. What became of them is kept beside this test, by
`PARSER_VERSION`. A row that is read otherwise on purpose needs another version and other golden
rows: `python -m churn_assets_tests.history.test_golden_rows` writes them.
"""

import json
import tempfile
from pathlib import Path

from churn_assets.history.raw import PARSER_VERSION
from churn_assets_tests.conftest import ingest_run, make_settings, stored

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden_rows.json"

FILES = {
    "events.csv": (
        "Event_ID,customer_id,event_timestamp,event_type,channel,session_id,order_id,product_id,"
        "quantity,amount,known_before\n"
        "e1,c1,2024-02-10 10:00:00,purchase,Web,s1,o1,p1,2,19.98,x\n"
        "e2,c1,2024-02-10T10:00:00+02:00, Purchase ,APP,s1,o1,p2,0.75,1.2345,x\n"
        "e2,c1,2024-02-10T10:00:00+02:00,purchase,app,s1,o1,p2,0.75,1.2345,x\n"
        ",c2,2024-02-11 00:00:00.123456,page_view,,,,,,,x\n"
        ",c2,2024-02-11 00:00:00.123456,page_view,,,,,,,x\n"
        "e5,c2,2024-02-12,browse,web,s2,,p1,,,x\n"
        "e6,c3,2024-02-13 09:00:00,purchase,web,,,p3,-1,-5.00,x\n"
        "e7,c3,2024-02-13 09:00:00,refund,web,,o9,p3,1,-5.00,x\n"
        "e8,c3,2024-02-13 09:00:00,add_to_cart,web,,,p3,1,-5.00,x\n"
        "e9,,2024-02-13 09:00:00,search,web,,,,,,x\n"
        "e10,c4,,search,web,,,,,,x\n"
        "e11,c4,no time,search,web,,,,,,x\n"
        "e12,c4,2024-02-14 09:00:00,purchase,web,,,p1,2000000,1,x\n"
        "e13,c4,2024-02-14 09:00:00,purchase,web,,,p1,many,1,x\n"
        'e14,"c,5",2024-02-15 09:00:00,wishlist,web,,,p1,1,1e2,x\n'
        "e15,c6,2024-01-10 09:00:00,purchase,web,,,p1,1,1,x\n"
        "e16,c6,2024-03-05 09:00:00,purchase,web,,,p1,,,x\n"
        "e17,c6,2024-05-01 09:00:00,purchase,web,,,p1,1,1,x\n"
        "e18,c7,2024-02-16 09:00:00,purchase\n"
    ),
    "customers.csv": (
        "customer_id,updated_at,signup_at,birth_date,gender,location,premium\n"
        "c1,2024-01-20,2020-05-01,1990-02-29,F,Berlin,true\n"
        "c1,2024-02-20 12:00:00,2020-05-01,1990-02-28,F,Paris,0\n"
        "c2,2023-01-01,2019-01-01,1850-01-01,m,,yes\n"
        "c3,,2019-01-01,1980-01-01,m,,no\n"
    ),
    "reviews.jsonl": (
        '{"review_id": "r1", "customer_id": "c1", "review_timestamp": "2024-02-20T08:00:00Z", '
        '"rating": 5, "text": "Great, would buy again", "helpful_votes": 3, "total_votes": 4}\n'
        '{"review_id": "r2", "customer_id": "c2", "review_timestamp": "2024-02-21", '
        '"rating": 7, "text": ""}\n'
        '{"review_id": "r2", "customer_id": "c2", "review_timestamp": "2024-02-21", "rating": 1}\n'
    ),
    "satisfaction.csv": (
        "customer_id,surveyed_at,satisfaction_score\nc1,2024-02-25,4\nc2,2024-02-25,9\n"
    ),
}
TABLES = ("raw_events", "raw_customers", "raw_reviews", "raw_satisfaction", "quarantined_rows")


def rows_of_today(folder: Path) -> dict[str, list[str]]:
    """What becomes of the files, as text per table."""
    settings = make_settings(folder, start="2024-01-15", end="2024-04-01T00:00:00")
    source = Path(settings.input_folder)
    source.mkdir(parents=True)
    for name, text in FILES.items():
        (source / name).write_text(text)
    ingest_run(settings, "2024-01-01", "2024-03-01", raise_on_error=False)
    return {
        table: [json.dumps(row, default=str, sort_keys=True) for row in stored(settings, table)]
        for table in TABLES
    }


def test_rows_are_read_as_their_version_says(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden["version"] == PARSER_VERSION, "write the golden rows of the new version"
    found = rows_of_today(tmp_path)
    for table in TABLES:
        assert found[table] == golden["rows"][table], (
            "rows are read otherwise: raise history.raw.PARSER_VERSION and write the golden rows"
        )
    assert all(found.values())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        kept = {"version": PARSER_VERSION, "rows": rows_of_today(Path(temporary))}
    GOLDEN.write_text(json.dumps(kept, indent=1) + "\n")
