//! Attention mask: patches that a teacher attends to are more likely to stay visible.
//!
//! | port        | dims    | what                                                    |
//! |-------------|---------|---------------------------------------------------------|
//! | `attention` | `B T P` | weight of each patch, not negative; rows need no sum    |
//! | `visible`   | `B V`   | indices of visible patches, time-major, ascending       |
//! | `hidden`    | `B N-V` | indices of the others, time-major, ascending            |
//!
//! N is `T P`. Per frame V is `T (P - floor(P ratio))`; per clip `T P - floor(T P ratio)`. Patches
//! are drawn without replacement with probability proportional to their weight: the largest weight
//! divided by an Exp(1) draw comes first.
//! Source: InternVideo2 (arXiv 2403.15377); recipes §1.4, D7.

use schemars::JsonSchema;
use schemas::dims::{Dims, keep};
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::Frames;
use schemas::node::{Forwarded, NodeError};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::kind::{self, Call, Host};
use crate::layers::size::check_share;
use crate::layers::visible::{self, Per};
use crate::rng::Key;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Share of the patches that is hidden.
    pub ratio: f64,
    /// Whether the share is hidden of every frame or of the clip as a whole.
    pub per: Per,
}

impl Default for Config {
    fn default() -> Self {
        Self { ratio: 0.8, per: Per::Frame }
    }
}

impl Config {
    /// Visible indices of one clip: `scores` and `noise` are `[T, P]`, row-major.
    pub fn choose(&self, scores: &[f32], noise: &[f32], patches: usize) -> Vec<i64> {
        let group = if self.per == Per::Clip { scores.len() } else { patches };
        let pairs = scores.chunks(group).zip(noise.chunks(group));
        let orders: Vec<_> = pairs.map(|(s, e)| visible::order(s, e)).collect();
        visible::first(&orders, keep(group, self.ratio))
    }
}

impl Host for Config {
    type State = ();

    fn ports(&self, _: &[String]) -> Ports {
        let seen = match self.per {
            Per::Frame => format!("T*keep(P,{})", self.ratio),
            Per::Clip => format!("keep(T*P,{})", self.ratio),
        };
        let inputs = Ports::default()
            .stopped("attention", "B T P")
            .lattice("T h w")
            .about("weight of each patch");
        visible::ports(inputs, &seen, "T*P", "T h w")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        check_share("ratio", self.ratio).into_iter().collect()
    }

    fn open(&self, _: &Dims, _: &Key) -> Result<(), NodeError> {
        Ok(())
    }

    fn forward(&self, (): &mut (), inputs: Frames, call: &Call) -> Result<Forwarded, NodeError> {
        give(&inputs, call, |scores, noise, patches| self.choose(scores, noise, patches))
    }
}

/// What a mask gives that chooses by scores at the port `attention`: `choose` takes those of a clip, as
/// many draws, and the number of patches of a frame.
pub fn give(
    inputs: &Frames,
    call: &Call,
    choose: impl Fn(&[f32], &[f32], usize) -> Vec<i64>,
) -> Result<Forwarded, NodeError> {
    let missing = || NodeError::MissingInput { port: "attention".to_owned() };
    let attention = inputs.get("attention").ok_or_else(missing)?;
    let &[_, frames, patches] = attention.shape() else {
        return Err(NodeError::Mismatch {
            port: "attention".to_owned(),
            found: format!("{:?}", attention.shape()),
            expected: "three dims".to_owned(),
        });
    };
    let scores = attention.to_f32();
    let one = |(sample, scores): (usize, &[f32])| {
        let noise = visible::noise(&call.key.with_number(sample as u64), scores.len());
        choose(scores, &noise, patches)
    };
    let chosen = scores.chunks(frames * patches).enumerate().map(one).collect();
    Ok(visible::give(chosen, frames * patches))
}

/// Kind `masks/attention`.
pub const ENTRY: Entry = kind::host::<Config>(include_str!("attention.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_with_weight_stay_before_those_without() {
        let config = Config { ratio: 0.5, per: Per::Frame };
        let scores = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0];
        let noise = visible::noise(&Key::new(3, "mask"), 8);
        assert_eq!(config.choose(&scores, &noise, 4), [1, 2, 4, 7]);
    }

    #[test]
    fn heavy_patches_are_seen_more_often() {
        let config = Config { ratio: 0.75, per: Per::Clip };
        let scores = [0.7, 0.1, 0.1, 0.1];
        let draws = (0..2000u64).map(|i| visible::noise(&Key::new(i, "mask"), 4));
        let seen = draws.filter(|e| config.choose(&scores, e, 4) == [0]).count();
        assert!((1320..1480).contains(&seen), "{seen}"); // 0.7 of 2000, four deviations
    }
}
