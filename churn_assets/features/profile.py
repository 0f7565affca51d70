"""Who customers are: the newest profile version before the cutoff. Categories stay text.

A customer without a version has NULLs, and so has a value that the newest version does not know.
What is declared here is all that leaves the raw layer of a profile: no name, address or other
direct identifier has a column, and of the birth date only the age goes on.
"""

from churn_assets.features.group import EVER, Derived, Feature, FeatureGroup, whole_days_since

VERSIONS = Derived(
    rollup="raw_customers",
    timestamp="updated_at",
    sql="""
        SELECT *,
            unix_micros(updated_at) AS updated_us,
            unix_micros(signup_at) AS signup_us,
            CAST(year(birth_date) * 10000 + month(birth_date) * 100 + day(birth_date) AS INTEGER)
                AS birth_ymd,
            CAST(premium AS INTEGER) AS premium_flag
        FROM {rollup} AS versions
    """,
)

# `max_by` passes over rows without a value, and would take it from an older version: a value that
# no version has stands in for NULL until the newest version is found.
UNKNOWN_NUMBER = -(10**18)


def newest_number(column: str) -> str:
    """A number of the newest version."""
    return f"NULLIF(max_by(coalesce({column}, {UNKNOWN_NUMBER}), updated_us), {UNKNOWN_NUMBER})"


def _category(name: str, description: str, sensitive: bool = False) -> Feature:
    newest = f"NULLIF(max_by(coalesce({name}, ''), updated_us), '')"
    return Feature(
        name=name,
        sql=newest,
        source="versions",
        window=EVER,
        dtype="VARCHAR",
        unit="",
        description=description,
        sensitive=sensitive,
    )


PROFILE = FeatureGroup(
    name="customer_profile_features",
    description=__doc__,
    owner="team:data",
    module=__name__,
    derived={"versions": VERSIONS},
    features=(
        Feature(
            name="age",
            # The difference of dates written as yyyymmdd counts a year on the birthday.
            sql=f"floor(CAST({{cutoff_ymd}} - {newest_number('birth_ymd')} AS DOUBLE) / 1e4)",
            source="versions",
            window=EVER,
            dtype="INTEGER",
            unit="years",
            description="Whole years at the cutoff",
            sensitive=True,
        ),
        _category("gender", "As given", sensitive=True),
        _category("location", "Country or region", sensitive=True),
        _category("income", "Income bracket", sensitive=True),
        _category("education", "Highest degree", sensitive=True),
        _category("loyalty_status", "Tier of the loyalty programme"),
        Feature(
            name="premium",
            sql=newest_number("premium_flag"),
            source="versions",
            window=EVER,
            dtype="BOOLEAN",
            unit="",
            description="Whether the customer pays for membership",
        ),
        _category("device", "Main device"),
        Feature(
            name="account_age_days",
            sql=whole_days_since(newest_number("signup_us")),
            source="versions",
            window=EVER,
            dtype="INTEGER",
            unit="days",
            description="Whole days since the account was opened",
        ),
    ),
)
