//! How gradients become updates.

use serde::{Deserialize, Serialize};

/// How gradients become updates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// Optimiser; `adamw` is the only one so far.
    #[serde(default = "default_optimizer")]
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled weight decay; norms, biases, tokens and position tables have none.
    #[serde(default)]
    pub weight_decay: f64,
    /// Bound on the global gradient norm over all trained nodes; none when absent.
    #[serde(default)]
    pub clip: Option<f64>,
    /// Steps of linear warm-up.
    #[serde(default)]
    pub warmup: u64,
    /// Learning rate at the first warm-up step.
    #[serde(default)]
    pub warmup_lr: f64,
    /// Learning rate at the last step, for schedules that end.
    #[serde(default)]
    pub min_lr: f64,
    /// Shape of the learning rate after warm-up.
    #[serde(default)]
    pub schedule: Schedule,
    /// Factor per layer counted from the top, below 1 for slower lower layers.
    #[serde(default)]
    pub layer_decay: Option<f64>,
}

/// Names of optimisers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    Adamw,
}

/// Shapes of the learning rate after warm-up.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The peak to the end.
    #[default]
    Constant,
    /// A straight line to `min_lr`.
    Linear,
    /// Half a cosine to `min_lr`.
    Cosine,
}

fn default_optimizer() -> OptimizerKind {
    OptimizerKind::Adamw
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn default_eps() -> f64 {
    1e-8
}

impl Optimizer {
    /// Learning rate at `step` of a stage of `steps` steps (both counted from 0 in the stage).
    ///
    /// Warm-up is a line from `warmup_lr` to `lr` over `warmup` points, both ends included; then
    /// point i of n follows the schedule (recipes §0.7).
    pub fn lr_at(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            let last = self.warmup.saturating_sub(1).max(1) as f64;
            return self.warmup_lr + (self.lr - self.warmup_lr) * step as f64 / last;
        }
        let done = (step - self.warmup) as f64 / steps.saturating_sub(self.warmup).max(1) as f64;
        match self.schedule {
            Schedule::Constant => self.lr,
            Schedule::Linear => self.lr + (self.min_lr - self.lr) * done,
            Schedule::Cosine => {
                let half = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
                self.min_lr + (self.lr - self.min_lr) * half
            }
        }
    }
}

impl Optimizer {
    /// Factor on the learning rate of a layer under layer-wise decay. Layers are numbered from 0
    /// (the embedding) to `blocks + 1` (what comes after the last block), which has factor 1.
    pub fn layer_factor(&self, layer: usize, blocks: usize) -> f64 {
        let above = (blocks + 1).saturating_sub(layer);
        self.layer_decay.map_or(1.0, |decay| decay.powi(above as i32))
    }
}
