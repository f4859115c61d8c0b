//! Sizes of vision transformers with attention pooling: presets and overrides.

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::OptionProblem;
use serde::{Deserialize, Serialize};

/// Numbers that replace those of a preset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SizeOptions {
    /// Pixels per side of a patch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<usize>,
    /// Frames per patch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tubelet: Option<usize>,
    /// Channels of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Attention heads of a block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Hidden channels of the MLP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// Heads of the attention pooling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_heads: Option<usize>,
    /// Channels of the pooled feature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooled: Option<usize>,
    /// Deviation that matrices start with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma: Option<f64>,
}

/// All numbers of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Size {
    /// Pixels per side of a patch.
    pub patch: usize,
    /// Frames per patch.
    pub tubelet: usize,
    /// Channels of a token, D.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Hidden channels of the MLP.
    pub hidden: usize,
    /// Heads of the attention pooling.
    pub pool_heads: usize,
    /// Channels of the pooled feature, P.
    pub pooled: usize,
    /// Deviation that matrices start with: 0.02 as published, more for narrow models.
    pub sigma: f64,
}

impl Size {
    /// Patch 14, tubelet 1, 16 pooling heads, 768 pooled channels.
    pub const fn vit(depth: usize, width: usize, heads: usize, hidden: usize) -> Self {
        let (patch, tubelet, pool_heads, pooled, sigma) = (14, 1, 16, 768, 0.02);
        Self { patch, tubelet, width, depth, heads, hidden, pool_heads, pooled, sigma }
    }

    /// For clips of 64 x 64 pixels on a laptop.
    pub const TINY: Self = Self {
        patch: 16,
        tubelet: 1,
        width: 96,
        depth: 4,
        heads: 4,
        hidden: 384,
        pool_heads: 4,
        pooled: 96,
        sigma: 0.1,
    };

    /// With the numbers that the options give.
    pub fn with(self, options: &SizeOptions) -> Self {
        Self {
            patch: options.patch.unwrap_or(self.patch),
            tubelet: options.tubelet.unwrap_or(self.tubelet),
            width: options.width.unwrap_or(self.width),
            depth: options.depth.unwrap_or(self.depth),
            heads: options.heads.unwrap_or(self.heads),
            hidden: options.hidden.unwrap_or(self.hidden),
            pool_heads: options.pool_heads.unwrap_or(self.pool_heads),
            pooled: options.pooled.unwrap_or(self.pooled),
            sigma: options.sigma.unwrap_or(self.sigma),
        }
    }

    /// The token lattice as dims of a port: frames, rows, columns.
    pub fn lattice(&self) -> String {
        let (rows, columns) = (over("H", self.patch), over("W", self.patch));
        format!("{} {rows} {columns}", self.times())
    }

    /// The number of tokens as one dim.
    pub fn tokens(&self) -> String {
        format!("({})*{}", self.times(), self.places())
    }

    /// The number of token frames as one dim.
    pub fn times(&self) -> String {
        over("T", self.tubelet)
    }

    /// The number of tokens in a frame as one dim.
    pub fn places(&self) -> String {
        format!("({})*({})", over("H", self.patch), over("W", self.patch))
    }

    /// Frames, rows and columns of tokens, from the dims of the video.
    pub fn cut(&self, dims: &Dims) -> [usize; 3] {
        [side(dims, "T") / self.tubelet, side(dims, "H") / self.patch, side(dims, "W") / self.patch]
    }

    /// Numbers in a patch: three colours of its pixels.
    pub fn voxels(&self) -> usize {
        3 * self.tubelet * self.patch * self.patch
    }

    /// Floating point operations of the blocks and the patch embedding for one sample, with
    /// `all` patches and `kept` tokens.
    pub fn flops(&self, all: usize, kept: usize) -> u64 {
        let [d, s, n] = [self.width as u64, kept as u64, all as u64];
        let block = 2 * s * (4 * d * d + 2 * d * self.hidden as u64) + 4 * s * s * d;
        self.depth as u64 * block + 2 * n * self.voxels() as u64 * d
    }

    /// Problems of patch and tubelet, for kinds whose own options they are.
    pub fn check_cut(&self) -> Vec<OptionProblem> {
        let sides = [("patch", self.patch), ("tubelet", self.tubelet)];
        let empty = sides.into_iter().filter(|(_, side)| *side == 0);
        empty.map(|(name, _)| none(name)).collect()
    }

    /// Problems that the numbers show.
    pub fn check(&self, width_multiple: usize) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        let mut refuse = |option: &str, message: String, hint: String| {
            problems.push(OptionProblem::new(format!("size.{option}"), message, hint));
        };
        for (name, value, most) in [
            ("patch", self.patch, 1 << 12),
            ("tubelet", self.tubelet, 1 << 12),
            ("width", self.width, 1 << 16),
            ("depth", self.depth, 1 << 10),
            ("heads", self.heads, 1 << 12),
            ("hidden", self.hidden, 1 << 20),
            ("pool_heads", self.pool_heads, 1 << 12),
            ("pooled", self.pooled, 1 << 16),
        ] {
            if value == 0 {
                let message = format!("`{name}` is 0, but must be at least 1");
                refuse(name, message, "give a number from 1".to_owned());
            } else if value > most {
                let message = format!("`{name}` is {value}, more than any model has");
                refuse(name, message, format!("give a number up to {most}"));
            }
        }
        if !(self.sigma > 0.0 && self.sigma <= 10.0) {
            let message = format!("`sigma` is {}, not above 0 and up to 10", self.sigma);
            refuse("sigma", message, "0.02 is usual".to_owned());
        }
        for (name, heads) in [("heads", self.heads), ("pool_heads", self.pool_heads)] {
            if heads > 0 && !self.width.is_multiple_of(heads) {
                let message = format!("{heads} heads do not divide a width of {}", self.width);
                let near = (1..=heads.min(self.width))
                    .rev()
                    .find(|n| self.width.is_multiple_of(*n))
                    .unwrap_or(1);
                refuse(name, message, format!("choose a divisor of the width, for example {near}"));
            }
        }
        if !self.width.is_multiple_of(width_multiple) {
            let message =
                format!("`width` is {}, but must be a multiple of {width_multiple}", self.width);
            let near = self.width.next_multiple_of(width_multiple);
            let hint = format!("the sine-cosine position table needs it; write {near}");
            refuse("width", message, hint);
        }
        problems
    }
}

/// `symbol/by`, or the symbol alone when `by` is 1.
fn over(symbol: &str, by: usize) -> String {
    if by == 1 { symbol.to_owned() } else { format!("{symbol}/{by}") }
}

/// Value of a symbol that a port of the node binds.
pub fn side(dims: &Dims, symbol: &str) -> usize {
    dims.get(symbol).copied().unwrap_or(0)
}

/// Problems of a choice of blocks.
pub fn check_taps(depth: usize, taps: usize, interval: f64) -> Vec<OptionProblem> {
    let mut problems = Vec::new();
    if taps == 0 || taps > depth {
        let message = format!("{taps} taps of {depth} blocks, expected 1 to {depth}");
        problems.push(OptionProblem::new("taps", message, format!("write 1 to {depth}")));
    } else if interval < 1.0 || (taps - 1) as f64 * interval >= depth as f64 {
        let message = format!("{taps} taps {interval} apart do not fit into {depth} blocks");
        problems.push(OptionProblem::new("tap_interval", message, "use 1, or fewer taps"));
    }
    problems
}

/// A problem when an input that names patches is connected and names none.
pub fn check_some(name: &str, dims: &Dims, symbol: &str) -> Option<OptionProblem> {
    let hint = "let the mask hide more: raise its `ratio` or `area`, or the number of patches";
    (dims.get(symbol) == Some(&0))
        .then(|| OptionProblem::new("", format!("`{name}` names no patch"), hint))
}

/// Problems of options for the pooling, where there is none.
pub fn check_no_pool(options: &SizeOptions) -> Vec<OptionProblem> {
    let given = [("pool_heads", options.pool_heads), ("pooled", options.pooled)];
    let given = given.into_iter().filter(|(_, value)| value.is_some());
    let refuse = |(name, _)| {
        let message = "there is no attention pooling here";
        OptionProblem::new(format!("size.{name}"), message, "leave it out")
    };
    given.map(refuse).collect()
}

/// A problem when more tokens are named than there are.
pub fn check_named(name: &str, named: usize, all: usize) -> Option<OptionProblem> {
    let message = format!("{named} {name} tokens of {all}");
    let hint = "use the mask of this lattice";
    (all > 0 && named > all).then(|| OptionProblem::new("size", message, hint))
}

/// A problem when `value` is not in `[0, 1)`.
pub fn check_share(option: &str, value: f64) -> Option<OptionProblem> {
    let message = format!("`{option}` is {value}, but must be from 0 to below 1");
    let hint = format!("write, for example, `{option}: 0.5`");
    (!(0.0..1.0).contains(&value)).then(|| OptionProblem::new(option, message, hint))
}

/// A problem when the ε of norms is not in `(0, 1]`.
pub fn check_eps(option: &str, value: f64) -> Option<OptionProblem> {
    let message = format!("`{option}` is {value}, not above 0 and up to 1");
    let hint = "leave it out for the published one";
    (!(value > 0.0 && value <= 1.0)).then(|| OptionProblem::new(option, message, hint))
}

/// A number that must not be 0 and is.
fn none(option: &str) -> OptionProblem {
    let message = format!("`{option}` is 0, but must be at least 1");
    OptionProblem::new(option, message, "give a number from 1")
}

/// A problem when there is a head for no class.
pub fn check_classes(classes: Option<usize>) -> Option<OptionProblem> {
    const MOST: usize = 1 << 24;
    let many = |classes: usize| {
        let message = format!("`classes` is {classes}, more than any data has");
        OptionProblem::new("classes", message, format!("give a number up to {MOST}"))
    };
    match classes? {
        0 => Some(none("classes")),
        classes => (classes > MOST).then(|| many(classes)),
    }
}
