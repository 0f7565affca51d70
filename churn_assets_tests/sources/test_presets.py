"""Prevents: a preset that reads an export almost right.

A file of each export's documented columns, with partial refunds, discounts, several lines per
order, taxes, shipping and guests, has to give the events that a person reads from it, and features
that pandas finds without our code.
"""

import csv
import datetime as dt
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from churn_assets.cutoffs import Calendar, midnight
from churn_assets.features.queries import feature_query
from churn_assets.history import validation
from churn_assets.history.quarantine import QUARANTINED_ROWS
from churn_assets.history.rollups import ROLLUPS
from churn_assets.sources import tables as declared
from churn_assets.sources.files import Files
from churn_assets.sources.input_files import input_files
from churn_assets.sources.presets import PRESETS, preset, preset_for
from churn_assets.sources.reading import columns_of
from churn_assets_tests.conftest import GROUPS, Row, query, utc_connection

CUTOFF = dt.date(2025, 4, 1)
CALENDAR = Calendar(dt.date(2025, 1, 1), midnight(CUTOFF))
KEYS = CALENDAR.slices.get_partition_keys()


def read(folder: Path, name: str) -> tuple[list[Row], list[Row], pd.DataFrame]:
    """The events of an export, its rows in quarantine, and the customers' features at CUTOFF."""
    (folder / "events.sql").write_text(preset(name).text)
    begin, end = CALENDAR.slice_window(KEYS[0])[0], CALENDAR.slice_window(KEYS[-1])[1]
    with utc_connection() as connection:
        connection.execute(f"CREATE TEMP TABLE rejected_rows AS {QUARANTINED_ROWS.empty()}")
        source = Files(str(folder)).read(connection, declared.EVENTS, begin, end)
        validation.ingest(connection, declared.EVENTS, source, CALENDAR, KEYS)
        for table, rollup, _ in ROLLUPS:
            connection.execute(
                f"CREATE TEMP TABLE {table.name} AS {table.typed(rollup('valid_rows'))}"
            )
        own = ("customer_profile_features", "customer_review_features")
        groups = [group for group in GROUPS if group.name not in own]
        found = feature_query(groups, CUTOFF, 90, lambda rollup, _: rollup)
        features = connection.sql(found).df().set_index("customer_id")
        events = query("FROM valid_rows ORDER BY event_timestamp, order_id, event_id", connection)
        rejected = query("FROM rejected_rows ORDER BY file, line", connection)
        return events, rejected, features


def shown(events: list[Row], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(event[name] for name in names) for event in events]


# Shopify

SHOPIFY = """
Name Email Financial_Status Paid_at Fulfillment_Status Fulfilled_at Accepts_Marketing Currency
Subtotal Shipping Taxes Total Discount_Code Discount_Amount Shipping_Method Created_at
Lineitem_quantity Lineitem_name Lineitem_price Lineitem_compare_at_price Lineitem_sku
Lineitem_requires_shipping Lineitem_taxable Lineitem_fulfillment_status Billing_Name Shipping_Name
Notes Note_Attributes Cancelled_at Payment_Method Payment_Reference Refunded_Amount Vendor
Outstanding_Balance Employee Location Device_ID Id Tags Risk_Level Source Lineitem_discount
Tax_1_Name Tax_1_Value Phone
"""
SHOPIFY_COLUMNS = [name.replace("_", " ") for name in SHOPIFY.split()]


def line(order: str, at: str, quantity: int, name: str, price: str, **others: str) -> Row:
    first = {
        "Name": order,
        "Created at": at,
        "Lineitem quantity": quantity,
        "Lineitem name": name,
        "Lineitem price": price,
        "Lineitem discount": "0.00",
    }
    return first | {key.replace("_", " "): value for key, value in others.items()}


SHOPIFY_ROWS = [
    # Two lines, 10 % off the order by a code, shipping and taxes on top.
    line("#1001", "2025-01-31 23:30:00 -0500", 2, "Mug", "10.00", Email="Anna@Shop.com",
         Subtotal="45.00", Shipping="5.00", Taxes="4.50", Total="54.50", Discount_Code="TEN",
         Discount_Amount="5.00", Financial_Status="paid", Refunded_Amount="0.00",
         Lineitem_sku="MUG-1"),
    line("#1001", "2025-01-31 23:30:00 -0500", 1, "Plate", "30.00", Email="Anna@Shop.com",
         Lineitem_sku="PLATE"),
    # A discount of one line.
    line("#1002", "2025-02-10 10:00:00 +0000", 3, "Mug", "10.00", Email="anna@shop.com",
         Subtotal="27.00", Total="27.00", Financial_Status="paid", Lineitem_discount="3.00",
         Refunded_Amount="0.00", Lineitem_sku="MUG-1"),
    # A guest, cancelled and refunded later; no sku.
    line("#1003", "2025-02-11 08:00:00 +0000", 1, "Lamp", "80.00", Email="guest@mail.org",
         Subtotal="80.00", Total="80.00", Financial_Status="refunded", Refunded_Amount="80.00",
         Cancelled_at="2025-02-14 09:00:00 +0000"),
    # A part is given back, nobody knows when.
    line("#1004", "2025-03-01 12:00:00 +0000", 2, "Plate", "30.00", Email="anna@shop.com",
         Subtotal="60.00", Total="60.00", Financial_Status="partially_refunded",
         Refunded_Amount="30.00", Lineitem_sku="PLATE"),
    # A sale at the counter, to nobody; and a price that is none.
    line("#1005", "2025-03-02 12:00:00 +0000", 1, "Mug", "10.00", Subtotal="10.00",
         Financial_Status="paid", Refunded_Amount="0.00"),
    line("#1006", "2025-03-03 12:00:00 +0000", 1, "Mug", "free", Email="ben@shop.com",
         Subtotal="0.00", Financial_Status="paid", Refunded_Amount="0.00"),
]  # fmt: skip


@pytest.fixture
def shopify(tmp_path: Path) -> Path:
    with (tmp_path / "orders_export_1.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, SHOPIFY_COLUMNS)
        writer.writeheader()
        writer.writerows(SHOPIFY_ROWS)
    return tmp_path


def test_shopify_orders(shopify: Path) -> None:
    events, rejected, features = read(shopify, "shopify_orders")
    names = ("customer_id", "order_id", "event_type", "product_id", "quantity", "amount")
    assert shown(events, *names) == [
        # 50.00 of goods for 45.00: each line costs 90 %.
        ("anna@shop.com", "#1001", "purchase", "MUG-1", 2, Decimal(18)),
        ("anna@shop.com", "#1001", "purchase", "PLATE", 1, Decimal(27)),
        ("anna@shop.com", "#1002", "purchase", "MUG-1", 3, Decimal(27)),
        ("guest@mail.org", "#1003", "purchase", "Lamp", 1, Decimal(80)),
        ("guest@mail.org", "#1003", "refund", None, 1, Decimal(80)),
        ("anna@shop.com", "#1004", "purchase", "PLATE", 2, Decimal(60)),
    ]
    assert events[0]["event_timestamp"] == dt.datetime(2025, 2, 1, 4, 30, tzinfo=dt.UTC)
    assert events[4]["event_timestamp"] == dt.datetime(2025, 2, 14, 9, tzinfo=dt.UTC)
    assert shown(rejected, "reason", "file", "line") == [
        ("missing_timestamp", "orders_export_1.csv", 6),
        ("missing_customer_id", "orders_export_1.csv", 7),
        ("unparseable_number", "orders_export_1.csv", 8),
    ]
    assert "1 of free" in rejected[2]["row"]

    exported = pd.DataFrame(SHOPIFY_ROWS)
    exported["customer"] = exported["Email"].str.lower()
    anna = exported[exported["customer"] == "anna@shop.com"]
    found = features.loc["anna@shop.com"]
    assert found["frequency"] == anna["Name"].nunique() == 3
    assert found["monetary"] == anna.groupby("Name")["Subtotal"].first().astype(float).sum() == 132
    assert found["avg_basket_size"] == anna["Lineitem quantity"].sum() / 3
    assert found["n_unique_products"] == anna["Lineitem sku"].nunique()
    newest = pd.to_datetime(anna["Created at"], utc=True).max()
    assert found["recency_days"] == (pd.Timestamp(CUTOFF, tz="UTC") - newest).days
    assert features.loc["guest@mail.org", "return_rate"] == 1 / 2
    assert found["return_rate"] == 0


def test_an_order_that_two_exports_hold_is_there_once(shopify: Path) -> None:
    once, _, _ = read(shopify, "shopify_orders")
    (shopify / "orders_export_2.csv").write_bytes((shopify / "orders_export_1.csv").read_bytes())
    twice, rejected, _ = read(shopify, "shopify_orders")
    assert once == twice
    assert sum(row["reason"] == "duplicate_id" for row in rejected) == len(once)


# WooCommerce


def woo(id: int, at: str, email: str, items: list[Row], **others: Any) -> Row:
    return {
        "id": id,
        "number": str(id),
        "status": "completed",
        "currency": "EUR",
        "date_created": at,
        "date_created_gmt": at,
        "date_modified_gmt": at,
        "discount_total": "0.00",
        "shipping_total": "4.90",
        "total": "99.00",
        "total_tax": "1.20",
        "customer_id": 0,
        "billing": {"first_name": "A", "email": email},
        "line_items": items,
        "tax_lines": [],
        "shipping_lines": [{"id": 9, "total": "4.90"}],
        "coupon_lines": [],
        "refunds": [],
    } | others


def item(id: int, product: int, quantity: float, total: str) -> Row:
    return {
        "id": id, "name": f"Product {product}", "product_id": product, "quantity": quantity,
        "subtotal": "100.00", "total": total, "total_tax": "1.00", "price": 1,
    }  # fmt: skip


WOO = [
    woo(727, "2025-01-10T10:00:00", "Anna@Shop.com",
        [item(1, 93, 2, "18.00"), item(2, 22, 1, "7.50")], customer_id=26,
        coupon_lines=[{"code": "ten", "discount": "2.00"}]),
    woo(728, "2025-02-10T10:00:00", "anna@shop.com", [item(3, 93, 1.5, "13.50")],
        date_modified_gmt="2025-02-20T08:00:00",
        refunds=[{"id": 5, "reason": "", "total": "-4.50"}]),
    woo(729, "2025-03-01T10:00:00", "ben@shop.com", [item(4, 7, 1, "30.00")], status="cancelled",
        total="34.90", date_modified_gmt="2025-03-02T00:00:00"),
    woo(730, "2025-03-05T10:00:00", "", [item(5, 7, 1, "30.00")]),
    woo(731, "2025-03-06T10:00:00", "ben@shop.com", [item(6, 7, 1, "30.00")],
        status="checkout-draft"),
    woo(732, "2025-03-07T10:00:00", "ben@shop.com", [], total="0.00"),
]  # fmt: skip


@pytest.mark.parametrize("as_lines", [False, True])
def test_woocommerce_orders(as_lines: bool, tmp_path: Path) -> None:
    text = "\n".join(map(json.dumps, WOO)) if as_lines else json.dumps(WOO, indent=2)
    (tmp_path / "orders.json").write_text(text)
    events, rejected, features = read(tmp_path, "woocommerce_orders")
    names = (
        "customer_id",
        "order_id",
        "event_type",
        "event_id",
        "product_id",
        "quantity",
        "amount",
    )
    assert shown(events, *names) == [
        ("anna@shop.com", "727", "purchase", "1", "93", 2, Decimal(18)),
        ("anna@shop.com", "727", "purchase", "2", "22", 1, Decimal("7.5")),
        ("anna@shop.com", "728", "purchase", "3", "93", Decimal("1.5"), Decimal("13.5")),
        ("anna@shop.com", "728", "refund", "refund 5", None, 1, Decimal("4.5")),
        ("ben@shop.com", "729", "purchase", "4", "7", 1, Decimal(30)),
        ("ben@shop.com", "729", "refund", "cancelled", None, 1, Decimal("34.9")),
        ("ben@shop.com", "732", "purchase", events[6]["event_id"], None, 1, Decimal(0)),
    ]
    assert events[3]["event_timestamp"] == dt.datetime(2025, 2, 20, 8, tzinfo=dt.UTC)
    assert shown(rejected, "reason") == [("missing_customer_id",)]

    given = pd.DataFrame(WOO).explode("line_items")
    given["customer"] = given["billing"].map(lambda billing: billing["email"].lower())
    anna = given[given["customer"] == "anna@shop.com"]
    totals = anna["line_items"].map(lambda item: float(item["total"]))
    found = features.loc["anna@shop.com"]
    assert found["monetary"] == totals.sum() == 39
    assert found["avg_order_value"] == totals.sum() / anna["id"].nunique()
    assert found["return_rate"] == 1 / 3
    assert features.loc["ben@shop.com", "frequency"] == 2


# Google Analytics 4


def ga4(micros: int, name: str, user: str, **others: Any) -> Row:
    return {
        "event_date": "20250201",
        "event_timestamp": str(micros),
        "event_name": name,
        "event_params": [
            {"key": "ga_session_id", "value": {"int_value": "77"}},
            {"key": "page_location", "value": {"string_value": "https://shop/'x'"}},
        ],
        "event_bundle_sequence_id": "3",
        "user_pseudo_id": user,
        "device": {"category": "mobile", "operating_system": "iOS"},
        "platform": "WEB",
        "items": [],
    } | others


FEBRUARY = 1_738_407_600_000_000
GA4 = [
    ga4(FEBRUARY, "page_view", "visitor.1"),
    ga4(FEBRUARY + 1, "view_item", "visitor.1", items=[{"item_id": "A", "price": 10.0}]),
    ga4(FEBRUARY + 2, "view_item_list", "visitor.1",
        items=[{"item_id": "A"}, {"item_id": "B"}, {"item_id": "C"}]),
    ga4(FEBRUARY + 3, "purchase", "visitor.1", user_id="anna",
        ecommerce={"transaction_id": "T1", "purchase_revenue": 35.5, "shipping_value": 5.0},
        items=[{"item_id": "A", "price": 10.0, "quantity": "2", "item_revenue": 20.0},
               {"item_id": "B", "price": 15.5, "quantity": "1"}]),
    ga4(FEBRUARY + 4, "purchase", "visitor.1", user_id="anna",
        ecommerce={"transaction_id": "T2", "purchase_revenue": 12.25},
        device={"category": "desktop"}),
    ga4(FEBRUARY + 5, "refund", "visitor.1", user_id="anna",
        ecommerce={"transaction_id": "T1", "refund_value": 35.5}),
    ga4(FEBRUARY + 6, "scroll", "visitor.2"),
    # Two items without a value, then one of two, then none and no revenue but the parameter.
    ga4(FEBRUARY + 7, "purchase", "visitor.3",
        ecommerce={"transaction_id": "T3", "purchase_revenue": 40.0},
        items=[{"item_id": "A"}, {"item_id": "B"}]),
    ga4(FEBRUARY + 8, "purchase", "visitor.3",
        ecommerce={"transaction_id": "T4", "purchase_revenue": 10.0},
        items=[{"item_id": "A"}, {"item_id": "B", "price": 10.0}]),
    ga4(FEBRUARY + 9, "in_app_purchase", "visitor.3",
        event_params=[{"key": "value", "value": {"double_value": 2.5}}]),
    ga4(FEBRUARY + 10, "refund", "visitor.3",
        ecommerce={"transaction_id": "T3", "refund_value": 40.0},
        items=[{"item_id": "A"}, {"item_id": "B"}]),
]  # fmt: skip


@pytest.mark.parametrize("ending", ["json", "json.gz", "parquet"])
def test_ga4_events(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"events_20250201.{ending}"
    text = "\n".join(map(json.dumps, GA4))
    if ending == "parquet":
        columns = dict.fromkeys(name for row in GA4 for name in row)
        values = {name: [row.get(name) for row in GA4] for name in columns}
        values["event_timestamp"] = [int(row["event_timestamp"]) for row in GA4]
        pq.write_table(pa.table(values), path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if ending == "json.gz" else text.encode())
    events, rejected, features = read(tmp_path, "ga4_events")
    names = ("customer_id", "event_type", "order_id", "product_id", "quantity", "amount", "channel")
    assert shown(sorted(events, key=lambda e: e["event_timestamp"]), *names) == [
        ("visitor.1", "page_view", None, None, 1, 0, "mobile"),
        ("visitor.1", "product_view", None, "A", 1, 0, "mobile"),
        ("visitor.1", "page_view", None, "A", 1, 0, "mobile"),
        ("anna", "purchase", "T1", "A", 2, Decimal(20), "mobile"),
        ("anna", "purchase", "T1", "B", 1, Decimal("15.5"), "mobile"),
        ("anna", "purchase", "T2", None, 1, Decimal("12.25"), "web"),
        ("anna", "refund", "T1", None, 1, Decimal("35.5"), "mobile"),
        ("visitor.2", "other", None, None, 1, 0, "mobile"),
        ("visitor.3", "purchase", "T3", "A", 1, Decimal(40), "mobile"),
        ("visitor.3", "purchase", "T3", "B", 1, 0, "mobile"),
        ("visitor.3", "purchase", "T4", "A", 1, 0, "mobile"),
        ("visitor.3", "purchase", "T4", "B", 1, Decimal(10), "mobile"),
        ("visitor.3", "purchase", f"in_app_purchase-{FEBRUARY + 9}-3", None, 1, Decimal("2.5"),
         "mobile"),
        ("visitor.3", "refund", "T3", "A", 1, Decimal(40), "mobile"),
        ("visitor.3", "refund", "T3", "B", 1, 0, "mobile"),
    ]  # fmt: skip
    assert {event["session_id"] for event in events} == {"77", None}
    assert events[0]["event_timestamp"] == dt.datetime(2025, 2, 1, 11, tzinfo=dt.UTC)
    assert rejected == []
    for customer, key in [("anna", "user_id"), ("visitor.3", "user_pseudo_id")]:
        revenue = [
            float(row.get("ecommerce", {}).get("purchase_revenue", 2.5))
            for row in GA4
            if "purchase" in row["event_name"] and row.get(key) == customer
        ]
        assert features.loc[customer, "monetary"] == sum(revenue)
    assert features.loc["anna", "frequency"] == 2
    assert features.loc["anna", "return_rate"] == 1 / 3


# Segment


def call(id: str, at: str, type: str = "track", **others: Any) -> Row:
    return {
        "messageId": id,
        "anonymousId": "browser-1",
        "userId": "anna",
        "type": type,
        "timestamp": at,
        "receivedAt": at,
        "context": {"library": {"name": "analytics.js"}, "page": {"path": "/"}},
    } | others


SEGMENT = [
    call("m1", "2025-02-01T10:00:00.000Z", "page", name="Home", userId=None),
    call("m2", "2025-02-01T10:01:00.000Z", event="Product Viewed",
         properties={"product_id": "A", "price": 19.99}),
    call("m3", "2025-02-01T10:02:00.000Z", event="Order Completed",
         properties={"order_id": "o1", "total": 31.5, "revenue": 27.0, "shipping": 3, "tax": 1.5,
                     "discount": 3, "products": [
                         {"product_id": "A", "price": 10, "quantity": 2},
                         {"sku": "B", "price": 10.0}]}),
    call("m4", "2025-02-03T10:02:00.000Z", event="Order Refunded",
         properties={"order_id": "o1", "total": 10}),
    call("m5", "2025-02-04T10:00:00.000Z", event="Order Completed",
         properties={"order_id": "o2", "revenue": 5}),
    call("m6", "2025-02-05T10:00:00.000Z", "identify", traits={"plan": "gold"}),
    call("m7", "2025-02-06T10:00:00.000Z", "screen", name="Cart",
         context={"device": {"type": "ios"}}),
    call("m8", "2025-02-07T10:00:00.000Z", event="Order Completed",
         properties={"order_id": "o3", "products": [{"sku": "B", "price": "gratis"}]}),
    call("m10", "2025-02-09T10:00:00.000Z", userId="ben", event="Order Completed",
         properties={"order_id": "o4", "revenue": 12, "products": [{"sku": "A"}, {"sku": "B"}]}),
    call("m11", "2025-02-09T11:00:00.000Z", userId="ben", event="Order Completed",
         properties={"order_id": "o5", "revenue": 12,
                     "products": [{"sku": "A"}, {"sku": "B", "price": 12}]}),
    call("m9", "2025-02-08T10:00:00.000Z", event="Products Filtered",
         properties={"products": [{"sku": "A"}, {"sku": "B"}]}),
]  # fmt: skip


def test_segment_tracks(tmp_path: Path) -> None:
    (tmp_path / "tracks.json.gz").write_bytes(
        gzip.compress("\n".join(map(json.dumps, SEGMENT)).encode())
    )
    events, rejected, features = read(tmp_path, "segment_tracks")
    names = ("customer_id", "event_type", "order_id", "product_id", "quantity", "amount", "channel")
    assert shown(events, *names) == [
        ("browser-1", "page_view", None, None, 1, 0, "web"),
        ("anna", "product_view", None, "A", 1, 0, "web"),
        # 30 of goods for 27.
        ("anna", "purchase", "o1", "A", 2, Decimal(18), "web"),
        ("anna", "purchase", "o1", "B", 1, Decimal(9), "web"),
        ("anna", "refund", "o1", None, 1, Decimal(10), "web"),
        ("anna", "purchase", "o2", None, 1, Decimal(5), "web"),
        ("anna", "page_view", None, None, 1, 0, "mobile"),
        ("anna", "other", None, "A", 1, 0, "web"),
        ("ben", "purchase", "o4", "A", 1, Decimal(12), "web"),
        ("ben", "purchase", "o4", "B", 1, 0, "web"),
        ("ben", "purchase", "o5", "A", 1, 0, "web"),
        ("ben", "purchase", "o5", "B", 1, Decimal(12), "web"),
    ]
    assert shown(rejected, "reason", "line") == [("unparseable_number", 8)]
    calls = [c for c in SEGMENT if c.get("event") == "Order Completed"]
    orders = pd.DataFrame([c["properties"] | {"person": c["userId"]} for c in calls])
    for customer, revenue in orders.groupby("person")["revenue"].sum().items():
        assert features.loc[str(customer), "monetary"] == revenue
    assert features.loc["anna", "mobile_events_7d"] == 0


def test_a_preset_is_known_by_the_columns_of_its_export(shopify: Path) -> None:
    (path,) = Files(str(shopify)).files(declared.EVENTS).unread
    assert path.name == "orders_export_1.csv"
    (shopify / "orders.json").write_text(json.dumps(WOO))
    (shopify / "tracks.json").write_text("\n".join(map(json.dumps, SEGMENT)))
    (shopify / "ga4.json").write_text("\n".join(map(json.dumps, GA4)))
    found = {file.name: preset_for(columns_of(file)) for file in input_files(shopify)[0]}
    assert found == {
        "ga4.json": "ga4_events",
        "orders.json": "woocommerce_orders",
        "orders_export_1.csv": "shopify_orders",
        "tracks.json": "segment_tracks",
    }
    assert set(found.values()) < set(PRESETS)


def test_without_a_query_the_message_names_the_preset(shopify: Path) -> None:
    begin, end = CALENDAR.slice_window(KEYS[0])[0], CALENDAR.slice_window(KEYS[-1])[1]
    with (
        utc_connection() as connection,
        pytest.raises(FileNotFoundError, match=r"orders_export.*`churn init shopify_orders`"),
    ):
        Files(str(shopify)).read(connection, declared.EVENTS, begin, end)
