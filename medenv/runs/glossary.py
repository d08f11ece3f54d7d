"""What every key means that SFT and GRPO runs of language-model doctors log; PPO's are in `medenv.runs.training`.

Does not cover: evaluations (`medenv.runs.evaluate`).
"""

GLOSSARY: dict[str, tuple[str, str, str]] = {  # key: (formula or meaning, healthy range, what a bad value means)
    "update": ("updates of the weights", "rises by one", "a gap: lines were lost"),
    "steps": ("the same, as every run has it", "-", "-"),
    "seconds": ("time spent, with loading, validation and the earlier parts of a resumed run", "-", "-"),
    "loss": (
        "SFT: weighted mean -log p of the doctor's tokens; GRPO: the clipped objective",
        "SFT falls; GRPO near 0",
        "SFT rises: learning_rate too high",
    ),
    "grad_norm": ("norm before clipping", "0.05 to 5", "explodes: lower learning_rate"),
    "learning_rate": ("AdamW's, on its schedule", "-", "-"),
    "tokens_per_second": (
        "tokens read and written, over the time of the update",
        "steady",
        "falling: consultations get longer, or the machine is shared",
    ),
    "generated_tokens_per_second": ("tokens that the doctor wrote, over the time of the rollouts", "steady", "as tokens_per_second"),
    "rollout_seconds": ("time of an update's rollouts", "-", "-"),
    "return": (
        "mean over the sampled consultations that were scored, the environment's own mix",
        "rises",
        "flat: raise learning_rate or group",
    ),
    "accuracy": ("their share of right diagnoses", "rises", "falls while return rises: the reward is hacked"),
    "questions": ("their mean number of valid questions", "settles", "near 0: asking does not pay; raise credit_weight"),
    "turns": ("their mean number of messages", "settles", "at max_turns: it never concludes"),
    "repeat_rate": ("repeated questions / all questions", "below 0.05", "rises: raise the weight of invalid_action in the mix"),
    "format_errors": (
        "share of messages of which nothing was understood",
        "below 0.05",
        "rises: learning_rate too high, or start from longer SFT",
    ),
    "undiagnosed": ("share of consultations that ended without a conclusion", "falls to 0", "rises: it asks to the end"),
    "failed": (
        "consultations of the update that could not be finished or scored; left out",
        "0",
        "above 0: their causes are in RUN/samples/*_failed.txt",
    ),
    "skipped_groups": (
        "groups without spread, or with fewer than two scored members; left out",
        "below half of them",
        "nearly all: cases too easy or too hard, or temperature too low",
    ),
    "learned_tokens": ("tokens in the loss", "-", "0: every group was skipped"),
    "kl": (
        "mean over tokens of r - 1 - log r, r = p_start / p_now, nats; at validations, with beta at every update",
        "0.01 to 1",
        "above 2: the language drifts; lower learning_rate or raise beta",
    ),
    "clip_fraction": (
        "share of tokens whose probability ratio was clipped",
        "0 with one minibatch, else below 0.3",
        "above 0.4: lower learning_rate or minibatches",
    ),
    "entropy": (
        "mean over the doctor's tokens, nats",
        "falls slowly",
        "near 0: groups have no spread any more; raise entropy or temperature",
    ),
    "validation_loss": (
        "SFT: mean -log p on held-out demonstrations, weighted as in training",
        "falls",
        "rises: it learns the demonstrations by heart",
    ),
    "validation_return": ("mean on the run's fixed validation cases, greedy decoding", "rises", "below return: sampling does better"),
    "validation_accuracy": ("share of right diagnoses on them", "rises", "-"),
    "validation_questions": ("mean number of valid questions on them", "settles", "-"),
    "validation_repeat_rate": ("as repeat_rate, on them", "below 0.05", "-"),
    "validation_format_errors": ("as format_errors, on them", "0", "-"),
    "validation_failed": ("of them", "0", "-"),
    "plateau": ("SFT: validation_return had not risen for `patience` validations: the run is over", "-", "-"),
    "same_weights": (
        "several processes: share of them whose weights are the first one's, bit for bit; at checkpoints",
        "1",
        "below 1: they train apart; report it",
    ),
    "worker_restarts": (
        "how many times the run went on from a checkpoint after a worker was killed",
        "0",
        "rises: see the workers' machines",
    ),
    "too_long": ("SFT: demonstrations left out, longer than the model's context", "0", "many: raise context"),
}
