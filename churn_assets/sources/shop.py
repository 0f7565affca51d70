"""A shop that keeps running: events, customer profiles, reviews and satisfaction surveys.

Every table is a pure function of (shop, window): generating [a, b) at once gives the rows of
[a, m) and [m, b), whatever the order. Windows are half-open days, timestamps UTC microseconds.

Customers follow a Pareto/NBD process (Schmittlein, Morrison & Colombo 1987): the purchase rate is
Gamma distributed, the lifetime exponential with a Gamma distributed dropout rate. A customer's
visits are Poisson with `activity_rate` until dropout, and each is a purchase with probability
purchase_rate / activity_rate, so purchases are Poisson with `purchase_rate`. A new customer's
arrival is a browsing visit; customers of before `start` are alive at `start`.

Everything a customer does happens inside a visit, minutes after it begins: orders, reviews, survey
answers, and the refund of a purchase, which comes with the next visit if that is within 30 days.
So the visits say all there is to know about being alive, and `true_churn` of the true rates
and the time since the last visit is the best possible prediction. Profile versions are no
activity: the shop keeps them, also for customers who have left.

Known limits: no season, no weekday pattern, no price change. Loyal customers accumulate, so events
per month keep growing (from the 18th month to the 54th by 60 to 75 %). Equal rows need an equal
numpy, whose random streams may change between versions.

This module has over 400 lines, because the draws of a customer stay in one order: another order is
another shop.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date, timedelta

import numpy as np
import pyarrow as pa

from churn_assets.sources.arrays import (
    DAY_US,
    Array,
    expand,
    geometric,
    ids_of,
    instants,
    microseconds,
    money,
    names_of,
    within,
    yyyymmdd,
)
from churn_assets.sources.review_texts import review_text

RAMP_DAYS = 540  # `Shop.customers` have arrived by then
BASE_SHARE = 0.20  # of them are customers at `start`: the first cutoff already has a population
BASE_TENURE_DAYS = 365  # and signed up within the year before it

# Gamma shape and mean, rates per day. Who buys often also browses often, so that a customer's
# visits tell of the purchase rate: the exact posterior given all visits covers 86 % of the way from
# the AUC of the days since the last purchase (0.69) to the best possible (0.85); it would cover
# 57 % if the two rates were independent, at as many events. By simulation (10,000 customers, 540
# days) there are 25 events per customer, and of those seen in the last 90 days 77 % buy nothing in
# the next 28.
PURCHASE_RATE = (1.2, 0.021)
BROWSES_PER_PURCHASE = (10, 5.0)
DROPOUT_RATE = (1.5, 0.013)
LONGEST_LIFE_DAYS = 36_500.0  # keeps timestamps in range when the dropout rate is nearly 0

# Satisfied customers buy more often and leave later: satisfaction (mean 0, variance 1) is a sum of
# the standardised log rates and noise, so that reviews tell of the rates what counts do not.
BUYING_LOADING, LEAVING_LOADING = 0.5, 0.8
LOG_PURCHASE_MEAN, LOG_PURCHASE_SD = -0.289, 1.126  # of log Gamma(1.2): digamma, root of trigamma
LOG_DROPOUT_MEAN, LOG_DROPOUT_SD = 0.036, 0.967  # of log Gamma(1.5)

RETURN_DAYS = 30  # a refund comes with the next visit, if it is no later
REVIEW_SHARE = 0.05  # of visits: 68,000 reviews per 100,000 customers in 540 days
SURVEY_SHARE = 0.03  # of visits
MOST_LINES = 6  # of an order; a visit is then under 40 steps of at most 90 s: well under a day
PRODUCTS = 400

EVENT_TYPES = (  # in the order within a visit
    "page_view",
    "search",
    "product_view",
    "add_to_cart",
    "remove_from_cart",
    "purchase",
    "refund",
)
ADD_TO_CART, REMOVE_FROM_CART, PURCHASE, REFUND = 3, 4, 5, 6  # positions in EVENT_TYPES

GENDERS = ("female", "male", "other")
LOCATIONS = ("north", "east", "south", "west", "centre", "islands", "coast", "abroad")
INCOMES = ("low", "medium", "high")
EDUCATIONS = ("school", "vocational", "bachelor", "master", "doctorate")
LOYALTY = ("none", "bronze", "silver", "gold")
LOYALTY_FROM = (0.7, 1.6, 3.5)  # purchase rate over its mean, blurred
DEVICES = ("android", "iphone", "desktop", "tablet")
PROFILE_CHANGES = 3  # at most, one per 300 days on average: a move, a new device or a loyalty tier
PROFILE_CHANGE_DAYS = 300.0


@dataclass(frozen=True)
class Customers:
    """One entry per customer, in order of arrival. Instants in microseconds, rates per day."""

    born: Array
    died: Array
    purchase_rate: Array
    dropout_rate: Array
    activity_rate: Array
    satisfaction: Array  # mean 0, variance 1
    mobile_share: Array  # of visits
    more_lines: Array  # probability that an order goes on after a line
    taste: Array  # uniform ** taste ranks the catalogue by price: below 1 buys expensive products


@dataclass(frozen=True)
class Visits:
    """One entry per visit; `day` (YYYYMMDD) and `number` identify it."""

    day: Array
    number: Array
    customer: Array  # position in Customers
    at: Array  # microseconds
    step: Array  # microseconds from one event to the next
    mobile: Array
    counts: Array  # (visit, event type): views, cart and order are the first products, and the last
    # of the cart are removed; no refunds yet, see `refunded`
    product: Array  # (visit, line)
    quantity: Array  # (visit, line)
    refunded: Array  # lines of this purchase that the next visit sends back, the first ones
    reviewed: Array  # whether the first product viewed is reviewed
    surveyed: Array
    mood: Array  # satisfaction, blurred


@dataclass(frozen=True)
class Shop:
    """A shop by its size, seed and first day.

    `customers` have arrived after the first 540 days; arrivals keep that rate for ever. What a
    customer is depends on the seed and the number of the customer alone.
    """

    customers: int
    seed: int
    start: date

    def events(self, begin: date, end: date) -> pa.Table:
        """One row per event with begin <= event_timestamp < end, by time.

        A purchase or refund row is an order line: quantity, amount (the line total) and order_id
        are NULL elsewhere. A refund carries the order_id of its purchase.
        """
        visits = self._visits(begin - timedelta(days=RETURN_DAYS + 1), end)
        current = np.flatnonzero(visits.day >= yyyymmdd(begin - timedelta(days=1)))
        purchase = _preceding_purchase(visits)[current]
        counts = visits.counts[current]
        counts[:, REFUND] = np.where(purchase >= 0, visits.refunded[purchase], 0)

        visit, position = expand(counts.sum(axis=1))
        group, line = expand(counts.ravel())
        kind = group % len(EVENT_TYPES)
        at = visits.at[current[visit]] + position * visits.step[current[visit]]
        rows = within(at, begin, end)
        at, visit, position, line, kind = (a[rows] for a in (at, visit, position, line, kind))

        source = np.where(kind == REFUND, purchase[visit], current[visit])
        visit = current[visit]
        cart = visits.counts[visit, ADD_TO_CART] - visits.counts[visit, REMOVE_FROM_CART]
        line = line + np.where(kind == REMOVE_FROM_CART, cart, 0)
        product, quantity = (
            per_line[source, line % MOST_LINES] for per_line in (visits.product, visits.quantity)
        )
        order_line = (kind == PURCHASE) | (kind == REFUND)
        columns = {
            "event_id": ids_of("e", visits.day[visit], visits.number[visit], position),
            "customer_id": ids_of("c", visits.customer[visit]),
            "event_timestamp": instants(at),
            "event_type": names_of(EVENT_TYPES, kind),
            "channel": names_of(("web", "mobile"), visits.mobile[visit].astype(np.int64)),
            "session_id": ids_of("s", visits.day[visit], visits.number[visit]),
            "order_id": ids_of("o", visits.day[source], visits.number[source], known=order_line),
            "product_id": ids_of("p", product, known=kind >= EVENT_TYPES.index("product_view")),
            "quantity": pa.array(quantity, mask=~order_line),
            "amount": money(self._prices()[product] * quantity, known=order_line),
        }
        return pa.table(columns)

    def customer_versions(self, begin: date, end: date) -> pa.Table:
        """One row per profile version with begin <= updated_at < end, by time.

        The first version of a customer is of the arrival, or of `start` for those of before.
        """
        customers = self._customers(end)
        n = len(customers.born)
        relative_rate = customers.purchase_rate / PURCHASE_RATE[1]
        first = np.maximum(customers.born, microseconds(self.start))
        gaps = self._random("profile gaps").exponential(
            PROFILE_CHANGE_DAYS * DAY_US, (n, PROFILE_CHANGES)
        )
        change = (self._random("profile changes").random((n, PROFILE_CHANGES)) * 3).astype(int)
        moves, switches, upgrades = (
            np.cumsum(np.insert(change == what, 0, False, axis=1), axis=1) for what in range(3)
        )
        updated = first[:, None] + np.cumsum(np.insert(gaps, 0, 0, axis=1), axis=1).astype(np.int64)

        blur = self._random("loyalty").lognormal(0, 0.7, n)
        tier = np.searchsorted(LOYALTY_FROM, relative_rate * blur)
        tiers = np.minimum(tier[:, None] + upgrades, len(LOYALTY) - 1)
        home = self._choice("location", LOCATIONS, n)
        homes = (home[:, None] + 3 * moves) % len(LOCATIONS)
        uses_phone = self._random("device").random(n) < customers.mobile_share
        device = self._choice("device model", DEVICES[:2], n) + np.where(uses_phone, 0, 2)
        devices = (device[:, None] + switches) % len(DEVICES)
        premium = self._random("premium").random(n) < 0.05 + 0.3 * relative_rate / (
            1 + relative_rate
        )
        age_days = 365.25 * (18 + 60 * self._random("age").beta(1.6, 2.2, n))
        birth = (customers.born / DAY_US - age_days).astype(np.int32)

        rows = within(updated.ravel(), begin, end)
        who, version = np.divmod(rows, PROFILE_CHANGES + 1)

        def told(what: str, share: float) -> Array:
            return (self._random(f"{what} told").random(n) < share)[who]

        def attribute(what: str, names: Sequence[str], share: float) -> pa.Array:
            return names_of(names, self._choice(what, names, n)[who], told(what, share))

        columns = {
            "customer_id": ids_of("c", who),
            "updated_at": instants(updated[who, version]),
            "signup_at": instants(customers.born[who]),
            "birth_date": pa.array(birth[who], mask=~told("birth", 0.9)).cast(pa.date32()),
            "gender": attribute("gender", GENDERS, 0.92),
            "location": names_of(LOCATIONS, homes[who, version]),
            "income": attribute("income", INCOMES, 0.8),
            "education": attribute("education", EDUCATIONS, 0.85),
            "loyalty_status": names_of(LOYALTY, tiers[who, version]),
            "premium": pa.array(premium[who]),
            "device": names_of(DEVICES, devices[who, version]),
        }
        return pa.table(columns)

    def reviews(self, begin: date, end: date) -> pa.Table:
        """One row per review with begin <= review_timestamp < end, by time."""
        visits = self._visits(begin - timedelta(days=1), end)
        at = visits.at + visits.step
        visit = within(at, begin, end, visits.reviewed)
        review_id = ids_of("r", visits.day[visit], visits.number[visit])
        product = visits.product[visit, 0]
        rating, text, helpful, total = [], [], [], []
        for key, item, mood in zip(review_id.to_pylist(), product, visits.mood[visit], strict=True):
            rng = random.Random(f"{self.seed} {key}")
            rating.append(min(max(round(2.8 + 1.1 * mood + rng.gauss(0, 0.3)), 1), 5))
            text.append(None if rng.random() < 0.03 else review_text(rng, int(item), float(mood)))
            votes = int(rng.expovariate(1 / 3))
            total.append(votes)
            helpful.append(sum(rng.random() < 0.65 for _ in range(votes)))
        columns = {
            "review_id": review_id,
            "customer_id": ids_of("c", visits.customer[visit]),
            "product_id": ids_of("p", product),
            "review_timestamp": instants(at[visit]),
            "rating": pa.array(rating, pa.int64()),
            "text": pa.array(text, pa.string()),
            "helpful_votes": pa.array(helpful, pa.int64()),
            "total_votes": pa.array(total, pa.int64()),
        }
        return pa.table(columns)

    def satisfaction(self, begin: date, end: date) -> pa.Table:
        """One row per answered survey with begin <= surveyed_at < end, by time. Scores 1 to 5."""
        visits = self._visits(begin - timedelta(days=1), end)
        at = visits.at + visits.step
        visit = within(at, begin, end, visits.surveyed)
        score = np.clip(np.rint(3.0 + 1.1 * visits.mood[visit]), 1, 5)
        columns = {
            "customer_id": ids_of("c", visits.customer[visit]),
            "surveyed_at": instants(at[visit]),
            "satisfaction_score": pa.array(score.astype(np.int64)),
        }
        return pa.table(columns)

    def truth(self, end: date) -> pa.Table:
        """One row per customer arrived before `end`: for evaluation only, never for features.

        Rates per day; died_at is the instant of dropout, also when after `end`.
        """
        customers = self._customers(end)
        columns = {
            "customer_id": ids_of("c", np.arange(len(customers.born))),
            "born_at": instants(customers.born),
            "died_at": instants(customers.died),
            "purchase_rate": pa.array(customers.purchase_rate),
            "dropout_rate": pa.array(customers.dropout_rate),
            "activity_rate": pa.array(customers.activity_rate),
        }
        return pa.table(columns)

    def _random(self, purpose: str, day: int = 0) -> np.random.Generator:
        """An independent stream per purpose and day. Its longer draws begin with the shorter."""
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode()), day])

    def _choice(self, purpose: str, names: Sequence[str], n: int) -> Array:
        return (self._random(purpose).random(n) * len(names)).astype(np.int64)

    def _prices(self) -> Array:
        """Cents per product, ascending."""
        return np.sort(self._random("price").lognormal(7.8, 0.7, PRODUCTS).astype(np.int64) + 99)

    def _customers(self, end: date) -> Customers:
        """The customers arrived before `end`.

        One arrives at a random instant of each of equal intervals, so that customer n is the same
        however many follow.
        """
        base = round(BASE_SHARE * self.customers)
        interval = RAMP_DAYS * DAY_US / (self.customers - base)
        start, stop = microseconds(self.start), microseconds(max(end, self.start))
        n = base + int(np.ceil((stop - start) / interval))
        position = np.arange(n) - base + self._random("arrival").random(n)
        tenure = BASE_TENURE_DAYS * DAY_US * (1 - self._random("tenure").random(n))
        born = start + np.where(np.arange(n) < base, -tenure, position * interval).astype(np.int64)
        n = int(np.searchsorted(born[base:], stop)) + base
        born = born[:n]

        def gamma(purpose: str, shape: float, mean: float) -> Array:
            return self._random(purpose).gamma(shape, mean / shape, n)

        purchase_rate = gamma("purchase rate", *PURCHASE_RATE)
        dropout_rate = gamma("dropout rate", *DROPOUT_RATE)
        days = self._random("lifetime").exponential(1, n) / dropout_rate
        life = (np.minimum(days, LONGEST_LIFE_DAYS) * DAY_US).astype(np.int64)
        shape, mean = PURCHASE_RATE
        buying = (np.log(purchase_rate * shape / mean) - LOG_PURCHASE_MEAN) / LOG_PURCHASE_SD
        shape, mean = DROPOUT_RATE
        leaving = (np.log(dropout_rate * shape / mean) - LOG_DROPOUT_MEAN) / LOG_DROPOUT_SD
        noise = np.sqrt(1 - BUYING_LOADING**2 - LEAVING_LOADING**2)
        return Customers(
            born=born,
            died=np.maximum(born, start) + life,
            purchase_rate=purchase_rate,
            dropout_rate=dropout_rate,
            activity_rate=purchase_rate * (1 + gamma("browses", *BROWSES_PER_PURCHASE)),
            satisfaction=BUYING_LOADING * buying
            - LEAVING_LOADING * leaving
            + noise * self._random("satisfaction").normal(0, 1, n),
            mobile_share=self._random("mobile").beta(0.8, 0.8, n),
            more_lines=self._random("basket").beta(1.5, 4.5, n),
            taste=self._random("taste").lognormal(0, 0.6, n),
        )

    def _visits(self, begin: date, end: date) -> Visits:
        """The visits that begin in the window, day by day.

        A window without a day of the shop gives those of its first day instead: the rows that
        follow from them lie outside, and tables without rows come out like any other.
        """
        customers = self._customers(end)
        first = max(begin, self.start)
        days = [first + timedelta(days=n) for n in range(max((end - first).days, 1))]
        parts = [self._visits_of_day(customers, day) for day in days]
        return Visits(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Visits)}
        )

    def _visits_of_day(self, customers: Customers, day: date) -> Visits:
        """The visits that begin on a day.

        The visits of all living customers are one Poisson process, in which each belongs to a
        customer in proportion to activity rate * time alive that day.
        """
        rng = self._random("visits", day.toordinal())
        opens = microseconds(day)
        closes = opens + DAY_US
        alive = np.flatnonzero((customers.born < closes) & (customers.died > opens))
        since = np.maximum(customers.born[alive], opens)
        until = np.minimum(customers.died[alive], closes)
        expected = np.cumsum(customers.activity_rate[alive] * (until - since) / DAY_US)
        total = expected[-1] if len(expected) else 0.0
        count = rng.poisson(total)
        pick = np.searchsorted(expected[:-1], rng.random(count) * total, side="right")
        at = since[pick] + (rng.random(count) * (until - since)[pick]).astype(np.int64)
        new = alive[customers.born[alive] >= opens]
        who = np.concatenate([alive[pick], new])
        n = len(who)

        buying = customers.purchase_rate[who] / customers.activity_rate[who]
        buys = rng.random(n) < buying
        buys[count:] = False  # arriving is browsing, or purchases would not be Poisson
        bought = np.where(
            buys, geometric(rng, np.ones(n), customers.more_lines[who], MOST_LINES), 0
        )
        viewed = np.minimum(bought + (rng.random(n) < 0.3), MOST_LINES)
        carted = np.minimum(bought + (rng.random(n) < 0.15), viewed)
        removed = np.where(buys | (rng.random(n) < 0.4), carted - bought, 0)
        pages = np.where(viewed > 0, rng.random(n) < 0.25, 1)
        searches = rng.random(n) < 0.1
        no_refunds = np.zeros(n)
        counts = np.column_stack([pages, searches, viewed, carted, removed, bought, no_refunds])
        mood = customers.satisfaction[who] + rng.normal(0, 0.3, n)
        product = PRODUCTS * rng.random((n, MOST_LINES)) ** customers.taste[who][:, None]
        sent_back = rng.random(n) < 0.4 / (1 + np.exp(0.3 + customers.satisfaction[who]))
        return Visits(
            day=np.full(n, yyyymmdd(day)),
            number=np.arange(n),
            customer=who,
            at=np.concatenate([at, customers.born[new]]),
            step=rng.integers(10_000_000, 90_000_000, n),
            mobile=rng.random(n) < customers.mobile_share[who],
            counts=counts.astype(np.int64),
            product=product.astype(np.int64),
            quantity=1 + (rng.random((n, MOST_LINES)) ** 4 * 4).astype(np.int64),
            refunded=np.where(sent_back, np.ceil(rng.random(n) * bought), 0).astype(np.int64),
            reviewed=rng.random(n) < REVIEW_SHARE,
            surveyed=rng.random(n) < SURVEY_SHARE,
            mood=mood,
        )


def _preceding_purchase(visits: Visits) -> Array:
    """Per visit the position of the customer's visit before, if that was a purchase at most 30 days
    ago, and -1 otherwise."""
    order = np.lexsort((visits.at, visits.customer))
    earlier, later = order[:-1], order[1:]
    follows = (
        (visits.customer[earlier] == visits.customer[later])
        & (visits.counts[earlier, PURCHASE] > 0)
        & (visits.at[later] - visits.at[earlier] < RETURN_DAYS * DAY_US)
    )
    preceding = np.full(len(order), -1)
    preceding[later[follows]] = earlier[follows]
    return preceding
