//! Which part of a network a node holds and runs.

use std::ops::Range;

use schemars::JsonSchema;
use schemas::entry::OptionProblem;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use super::size::TextSize;

/// What a node does of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// All of it; all tokens see each other.
    #[default]
    Whole,
    /// All of it; no token sees a later one.
    Causal,
    /// Embeddings and the blocks before the split.
    Text,
    /// The blocks from the split on, and the heads.
    Fusion,
}

/// A network and the part of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// What the node does.
    pub mode: Mode,
    /// Blocks of the whole network.
    pub depth: usize,
    /// First block of the second part.
    pub split: Option<usize>,
    /// First block with cross-attention, and channels of the memory.
    pub cross: Option<[usize; 2]>,
}

impl Parts {
    /// Numbers of the blocks that the node runs.
    pub fn range(&self) -> Range<usize> {
        let split = self.split.unwrap_or(self.depth).min(self.depth);
        match self.mode {
            Mode::Whole | Mode::Causal => 0..self.depth,
            Mode::Text => 0..split,
            Mode::Fusion => split..self.depth,
        }
    }

    /// Whether one of the blocks of the node attends to a memory.
    pub fn asks(&self) -> bool {
        self.cross.is_some_and(|[from, _]| from < self.range().end)
    }

    /// Problems of the cut and of the cross-attention.
    pub fn check(&self) -> Vec<OptionProblem> {
        let (depth, mut problems) = (self.depth, Vec::new());
        let mut refuse = |option: &str, message: String, hint: &str| {
            problems.push(OptionProblem::new(option, message, hint));
        };
        match self.split {
            None if matches!(self.mode, Mode::Text | Mode::Fusion) => {
                let message = "a part of the network is asked for, but no `split`".to_owned();
                refuse("split", message, "give the number of the first block of `mode: fusion`");
            }
            Some(split) if split == 0 || split >= depth => {
                let message = format!("`split` is {split}, not from 1 to {}", depth.max(2) - 1);
                refuse("split", message, "leave at least one block on each side");
            }
            _ => {}
        }
        if let Some([from, _]) = self.cross.filter(|[from, _]| *from >= depth) {
            let message = format!("`cross_from` is {from}, but there are {depth} blocks");
            refuse("cross_from", message, "name a block, counted from 0");
        }
        problems
    }

    /// What the node takes, with a head of words or without.
    pub fn inputs(&self, size: &TextSize, mlm: bool) -> Ports {
        let ports = if self.mode == Mode::Fusion {
            let ports = Ports::default()
                .input("hidden", format!("B L {}", size.width))
                .about("tokens after the blocks before the split");
            if !mlm {
                ports
            } else {
                let dims = format!("{} {}", size.vocab, size.width);
                ports.input("table", dims).about("word embeddings, to which the head is tied")
            }
        } else {
            let ports = Ports::default().stopped("ids", "B L").int().about("words");
            if size.types == 0 {
                ports
            } else {
                let ports = ports.stopped("types", "B L").int().optional();
                ports.about("types of tokens; 0 when absent")
            }
        };
        let ports = ports.stopped("mask", "B L").int().optional().about("1 where there is a token");
        match self.cross {
            Some([_, width]) if self.asks() => ports
                .input("memory", format!("B M {width}"))
                .optional()
                .about("tokens to attend to")
                .stopped("memory_mask", "B M")
                .int()
                .optional()
                .about("1 where there is a token of the memory"),
            _ => ports,
        }
    }
}
