"""The filters by the names that recipes use.

A rule or a judge of your own is a reward, which a `reward` step names by reference; nothing has to be added
here for it.
"""

from collections.abc import Callable
from typing import Any

from posttrain.curation.filters import Context, Filter, Query, Response
from posttrain.curation.model_filters import (
    ImageNeeded,
    QueryReview,
    RejectionSampling,
    Reward,
    domain,
    pass_rate,
)

#: From a step's section of the recipe (see `posttrain.config.curation`) and the context to the filter.
FILTERS: dict[str, Callable[[Any, Context], Filter]] = {
    "query": Query,
    "query_review": QueryReview,
    "domain": domain,
    "response": Response,
    "reward": Reward,
    "rejection_sampling": RejectionSampling,
    "pass_rate": pass_rate,
    "image_needed": ImageNeeded,
}
