//! Keys that an experiment file may hold.

/// Of an experiment.
pub(crate) const TOP_KEYS: [&str; 8] =
    ["question", "seed", "graph", "curriculum", "observers", "hosts", "place", "run"];

/// Of a stage.
pub(crate) const STAGE_KEYS: [&str; 15] = [
    "name",
    "steps",
    "train",
    "losses",
    "optimizer",
    "moments",
    "accumulate",
    "mixture",
    "until",
    "with",
    "from",
    "takes",
    "fresh",
    "drop",
    "rules",
];

/// Of an optimiser.
pub(crate) const OPTIMIZER_KEYS: [&str; 11] = [
    "kind",
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "clip",
    "warmup",
    "warmup_lr",
    "min_lr",
    "schedule",
    "layer_decay",
];

/// Of a gate.
pub(crate) const GATE_KEYS: [&str; 6] = ["metric", "above", "below", "plateau", "by", "over"];

/// Of a host.
pub(crate) const HOST_KEYS: [&str; 3] = ["transport", "listen", "threads"];

/// Of `run`.
pub(crate) const RUN_KEYS: [&str; 6] =
    ["prefetch", "max_restarts", "restart_window", "keys", "deadline", "device"];
