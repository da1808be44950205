"""The filters by the names that recipes use.

A rule or a judge of your own is a reward, named by reference in a `reward` step; so nothing need be added
here for it.
"""

from collections.abc import Callable
from typing import Any

from posttrain.curation.filters import Context, Filter, Query, Response
from posttrain.curation.model_filters import (
    ImageNeeded,
    PassRate,
    QueryReview,
    RejectionSampling,
    Reward,
    domain,
)

#: Each makes a filter of its step's section, in `posttrain.config.curation`, and the context.
FILTERS: dict[str, Callable[[Any, Context], Filter]] = {
    "query": Query,
    "query_review": QueryReview,
    "domain": domain,
    "response": Response,
    "reward": Reward,
    "rejection_sampling": RejectionSampling,
    "pass_rate": PassRate,
    "image_needed": ImageNeeded,
}
