"""Names of the figures in `metrics.jsonl`, for those who log them and those who show them.

A name is `<what it is about>/<what is measured>`, or one word for what every trainer logs. A constant that
ends in `/` or `_` is the beginning of names that a plugin, a task or a quantile completes. Runs of every
version use these names, so none may change its text.
"""

#: What every trainer logs.
LOSS = "loss"
GRAD_NORM = "grad_norm"
LEARNING_RATE = "learning_rate"
#: Updates that were left out since their loss or gradient was not finite.
UPDATE_SKIPPED = "update/skipped"
#: Samples that were left out since they are too long.
DATA_LEFT_OUT = "data/left_out"

#: DPO's implicit rewards, β × (log-prob − the reference's), under TRL's names.
PREFERENCE = "rewards/"
PREFERENCE_CHOSEN = "rewards/chosen"
PREFERENCE_REJECTED = "rewards/rejected"
PREFERENCE_MARGINS = "rewards/margins"
PREFERENCE_ACCURACIES = "rewards/accuracies"

#: Figures of a stage's held-out samples: this, and the name of the figure.
HELD_OUT = "eval_"
HELD_OUT_LOSS = HELD_OUT + LOSS
HELD_OUT_LEFT_OUT = "eval_left_out"
#: Share of the held-out pairs whose preferred answer is the likelier one to the model. Unlike
#: `rewards/accuracies`, which compares with the reference, it also means something before the first step.
HELD_OUT_PREFERRED = "eval_preferred"
HELD_OUT_PREFERENCE = HELD_OUT + PREFERENCE
HELD_OUT_PREFERENCE_ACCURACIES = HELD_OUT + PREFERENCE_ACCURACIES
HELD_OUT_PREFERENCE_MARGINS = HELD_OUT + PREFERENCE_MARGINS

#: Share of a training stage's own checks that are right: this, and the name of the check.
ACCURACY = "accuracy/"

#: Mean of a reward over the scored episodes of a step: this, and the reward's name. Where a stage has several
#: tasks, these, `episode/…` and the silent groups are also told of each (see `of_task`).
REWARD = "reward/"
REWARD_MEAN = "reward/mean"
#: Episodes of which a reward failed.
REWARD_ERRORS = "reward/errors"
#: Groups whose episodes all scored alike, and groups that were dropped.
ADVANTAGE_ZERO_GROUPS = "advantage/zero_groups"
ADVANTAGE_DROPPED_GROUPS = "advantage/dropped_groups"
#: Groups whose episodes all had the same outcome, the first reward, and scored unlike in other rewards alone.
ADVANTAGE_SHAPED_GROUPS = "advantage/shaped_groups"
#: Dynamic sampling: rounds of further prompts, groups that were replaced, and the episodes that they took, of
#: which none was learned. Figures of rewards and episodes are then those of the first round.
REFILL = "refill/"
REFILL_ROUNDS = "refill/rounds"
REFILL_GROUPS = "refill/groups"
REFILL_EPISODES = "refill/episodes"
EPISODE_TOOL_CALLS = "episode/tool_calls"
EPISODE_TURNS = "episode/turns"
EPISODE_TOKENS = "episode/tokens"
#: Share of the episodes that ended at a limit instead of with an answer.
EPISODE_TRUNCATED = "episode/truncated"
#: Share of the episodes that the world failed, which teach nothing; and how often a tool or an environment
#: failed, retries included: this, and its name.
EPISODE_FAILED = "episode/failed"
TOOL_FAILURES = "tool_failures/"
#: Episodes that were left out of the loss since they ended at a limit.
EPISODE_MASKED = "episode/masked"

#: What judges have been asked and have cost since the run began: this, and `calls`, `cached`, `input_tokens`,
#: `output_tokens` or `cost`.
JUDGE = "judge/"
JUDGE_CALLS = "judge/calls"
JUDGE_CACHED = "judge/cached"
JUDGE_COST = "judge/cost"
#: How far a judge agrees with a rule of the same task, over a step's episodes that have both: this, then of
#: each task `kappa`, `correlation`, and the numbers of episodes that `both`, the `judge_only`, the
#: `rule_only` or `neither` called good; last the judge and the rule, as in `judge vs math`.
AGREEMENT = "agreement/"
AGREEMENT_KAPPA = "agreement/kappa/"

ENTROPY = "entropy"
#: Share of the tokens whose ratio was clipped; of those, below, above, and at negative advantages above.
CLIP_FRACTION = "clip_fraction"
CLIP_FRACTION_LOW = "clip_fraction/low"
CLIP_FRACTION_HIGH = "clip_fraction/high"
CLIP_FRACTION_DUAL = "clip_fraction/dual"
#: Estimates of KL divergences, in nats a token.
KL = "kl/"
KL_TEACHER = "kl/teacher"
#: Mean divergence from a teacher over the whole vocabulary, of the kind that is learned, in nats a token.
DIVERGENCE = "divergence/"
DIVERGENCE_TEACHER = "divergence/teacher"
KL_ENGINE_LEARNER = "kl/engine_learner"
KL_OLD_NEW = "kl/old_new"
#: From the policy to the weights that the stage started with.
KL_REFERENCE = "kl/reference"
#: |engine's − learner's log-prob| of the tokens that the learner's present weights sampled.
LOGPROB_GAP = "logprob_gap/"
LOGPROB_GAP_MAX = "logprob_gap/max"
LOGPROB_GAP_MEAN = "logprob_gap/mean"
#: The same by class of token: this, the class, and `_p50`, `_p99` or `_max`.
CLASS_GAP = "class_gap/"
#: Share of the tokens that older versions sampled, how far the policy has moved from them since (in the mean
#: of the gaps, and as KL of old and present).
DRIFT = "drift/"
DRIFT_TOKENS = "drift/tokens"
DRIFT_GAP = "drift/gap"
DRIFT_KL = "drift/kl"
#: Share of the tokens whose log-probs are approximate, because older keys and values were kept, and the mean
#: of their gaps.
APPROXIMATE = "approximate/"
APPROXIMATE_TOKENS = "approximate/tokens"
APPROXIMATE_GAP = "approximate/gap"
#: Mean probability of the tokens that are never sampled (vision placeholders).
BANNED_MASS = "banned_mass"
#: Quantiles (see QUANTILES) of SAPO's weight of a token, of episodes with positive and negative advantage.
GATE_POSITIVE = "gate/pos"
GATE_NEGATIVE = "gate/neg"
QUANTILES = ("p05", "p50", "p95")
#: 1 where the weights had to be sent to the engines a second time.
PUBLISH_REPEATED = "publish/repeated"
#: Largest |engine's − learner's log-prob| in the proof that every engine serves the new weights.
PUBLISH_PROOF_GAP = "publish/proof_gap"

#: Age of the tokens that a step learned from, in versions of the policy: how much older than the weights that
#: learned from them were those that sampled them. Last, the share of the tokens of an age: this, and the age.
STALENESS_MEAN = "staleness/mean"
STALENESS_MAX = "staleness/max"
STALENESS_SHARE = "staleness/share_"

#: Seconds of a step and of its parts. A rollout's are from the start of its first episode to the end of its
#: last; with staleness other steps are learned meanwhile.
TIME = "time/"
TIME_STEP = "time/step"
TIME_ROLLOUT = "time/rollout"
TIME_REWARD = "time/reward"
TIME_LEARNER = "time/learner"
#: The part of a learner's time in which the teacher read the episodes; of a teacher in engines, which reads
#: while others are played, the seconds that a step waited for it once its last episode was over.
TIME_TEACHER = "time/teacher"
TIME_PUBLISH = "time/publish"
TIME_PROOF = "time/proof"
#: Seconds that learners waited for episodes, and that an engine waited for permission to start more of them.
TIME_LEARNER_WAIT = "time/learner_wait"
TIME_ENGINE_WAIT = "time/engine_wait"


def of_task(name: str, task: str) -> str:
    """Return the name of a figure of one task, such as `reward/markers/mean` of `reward/mean`."""
    about, _, what = name.partition("/")
    return f"{about}/{task}/{what}"
