//! Semantic mask: a teacher's scores decide which patches stay visible, by rank or by chance.
//!
//! | port        | dims    | what                                                    |
//! |-------------|---------|---------------------------------------------------------|
//! | `attention` | `B T P` | score of each patch, not negative; rows need no sum     |
//! | `visible`   | `B V`   | indices of visible patches, time-major, ascending       |
//! | `hidden`    | `B N-V` | indices of the others, time-major, ascending            |
//!
//! N is `T P`. Per frame V is `T (P - floor(P ratio))`; per clip `T P - floor(T P ratio)`. `draw` is
//! `masks/attention`: drawn without replacement, patches of high score are more likely to stay. `keep`
//! leaves the highest scores visible, `hide` the lowest; of equal scores the first counts as higher.
//! Source: InternVideo-Next draws (recipes §5.2); ranks are SemMAE's and AttMask's idea (Li et al.
//! 2022, arXiv 2206.10207; Kakogeorgiou et al. 2022, arXiv 2203.12719).

use schemars::JsonSchema;
use schemas::dims::{Dims, keep};
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::Frames;
use schemas::node::{Forwarded, NodeError};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use super::attention;
use crate::kind::{self, Call, Host};
use crate::layers::visible::{self, Per};
use crate::rng::Key;

/// How scores decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// High scores are more likely to stay visible.
    #[default]
    Draw,
    /// The highest scores stay visible.
    Keep,
    /// The highest scores are hidden.
    Hide,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How scores decide.
    pub choice: Choice,
    /// Share of the patches that is hidden.
    pub ratio: f64,
    /// Whether the share is hidden of every frame or of the clip as a whole.
    pub per: Per,
}

impl Default for Config {
    fn default() -> Self {
        Self { choice: Choice::default(), ratio: 0.75, per: Per::Frame }
    }
}

impl Config {
    fn drawn(&self) -> attention::Config {
        attention::Config { ratio: self.ratio, per: self.per }
    }

    /// Visible indices of one clip: `scores` and `noise` are `[T, P]`, row-major; ranks need no noise.
    pub fn choose(&self, scores: &[f32], noise: &[f32], patches: usize) -> Vec<i64> {
        if self.choice == Choice::Draw {
            return self.drawn().choose(scores, noise, patches);
        }
        let group = if self.per == Per::Clip { scores.len() } else { patches };
        let even = vec![1.0; group];
        let ranked = |scores: &[f32]| {
            let mut order = visible::order(scores, &even);
            if self.choice == Choice::Hide {
                order.reverse();
            }
            order
        };
        let orders: Vec<_> = scores.chunks(group).map(ranked).collect();
        visible::first(&orders, keep(group, self.ratio))
    }
}

impl Host for Config {
    type State = ();

    fn ports(&self, wired: &[String]) -> Ports {
        self.drawn().ports(wired)
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        self.drawn().check(dims)
    }

    fn open(&self, _: &Dims, _: &Key) -> Result<(), NodeError> {
        Ok(())
    }

    fn forward(&self, (): &mut (), inputs: Frames, call: &Call) -> Result<Forwarded, NodeError> {
        attention::give(&inputs, call, |scores, noise, patches| self.choose(scores, noise, patches))
    }
}

/// Kind `masks/semantic`.
pub const ENTRY: Entry = kind::host::<Config>(include_str!("semantic.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_keep_or_hide_the_highest_scores_of_every_frame() {
        let scores = [0.1, 0.9, 0.5, 0.2, 0.3, 0.3, 0.0, 0.3];
        let with = |choice, per| {
            let config = Config { choice, ratio: 0.5, per };
            config.choose(&scores, &[1.0; 8], 4)
        };
        assert_eq!(with(Choice::Keep, Per::Frame), [1, 2, 4, 5]);
        assert_eq!(with(Choice::Hide, Per::Frame), [0, 3, 6, 7]);
        assert_eq!(with(Choice::Keep, Per::Clip), [1, 2, 4, 5]);
    }

    #[test]
    fn a_draw_is_that_of_the_attention_mask() {
        let noise = visible::noise(&Key::new(3, "mask"), 8);
        let scores = [0.7, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.4];
        let config = Config::default();
        let other = attention::Config { ratio: 0.75, per: Per::Frame };
        assert_eq!(config.choose(&scores, &noise, 4), other.choose(&scores, &noise, 4));
    }
}
