"""What trackers and shops call the event types that we know.

Names as documented for Google Analytics 4, Segment's e-commerce events (RudderStack and mParticle
write the same), Matomo, and in the public data sets of RetailRocket and REES46. A name is not here
where it may stand for something else: of a checkout nobody knows whether it ended in an order.
"""

from churn_assets.sources.tables import EVENT_TYPES

# In lower case, words joined by one underscore.
NAMES: dict[str, tuple[str, ...]] = {
    "page_view": ("browse", "page_viewed", "page", "pageview", "screen_view", "view_item_list",
                  "product_list_viewed", "view_cart", "cart_viewed"),
    "product_view": ("view_item", "product_viewed", "product_clicked", "select_item", "view",
                     "view_product", "viewed_product", "detail"),
    "search": ("view_search_results", "products_searched", "site_search"),
    "add_to_cart": ("product_added", "added_to_cart", "addtocart", "cart", "cart_add", "add"),
    "remove_from_cart": ("product_removed", "removed_from_cart", "removefromcart", "cart_remove",
                         "remove"),
    "purchase": ("order_completed", "completed_order", "transaction", "ecommerce_purchase",
                 "in_app_purchase", "order", "sale"),
    "refund": ("order_refunded", "refunded", "return", "returned"),
}  # fmt: skip


def event_type(text: str) -> str:
    """SQL for the event type that a name in lower case stands for; `other` where it is none."""
    name = f"regexp_replace({text}, '[^a-z0-9]+', '_', 'g')"
    known = {name: ours for ours, names in NAMES.items() for name in (ours, *names)}
    # A list in IN is joined with, for every row: the search in a map is for those that need it.
    types = f"MAP {{{', '.join(f'{theirs!r}: {ours!r}' for theirs, ours in known.items())}}}"
    return f"CASE WHEN {is_ours(text)} THEN {text} ELSE coalesce(({types})[{name}], 'other') END"


def is_ours(text: str) -> str:
    """SQL for whether a text is one of our event types, as almost all are."""
    return f"({' OR '.join(f'{text} = {ours!r}' for ours in EVENT_TYPES)})"
