"""The filters by the names that recipes use.

A rule or a judge of your own is a reward, which a `reward` step names by reference; nothing has to be added
here for it.
"""

from collections.abc import Callable
from typing import Any

from posttrain.curation.episode_filters import call_targets, pass_rate, rejection_sampling
from posttrain.curation.filters import Context, Filter, Query, Response
from posttrain.curation.model_filters import ImageNeeded, QueryReview, Reward, domain

#: From a step's section of the recipe (see `posttrain.config.curation`) and the context to the filter.
FILTERS: dict[str, Callable[[Any, Context], Filter]] = {
    "query": Query,
    "query_review": QueryReview,
    "domain": domain,
    "response": Response,
    "reward": Reward,
    "rejection_sampling": rejection_sampling,
    "pass_rate": pass_rate,
    "call_targets": call_targets,
    "image_needed": ImageNeeded,
}
