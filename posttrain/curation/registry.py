"""The filters by the names that recipes use.

A rule or a judge of your own is a reward, which a `reward` step names by reference; nothing has to be added
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

#: From a step's section of the recipe (see `posttrain.config.curation`) and the context to the filter.
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
