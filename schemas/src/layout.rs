//! How a checkpoint names and stores the parameters of a kind.
//!
//! A layout turns the path of a parameter into a key by replacing pieces of it, one rule after the
//! other. A key may end with a note on how the parameter is stored: `[i/n]` says that it is the i-th
//! of n equal parts of the tensor along its first dim, as the q, k and v of a fused projection;
//! `[2d]` says that a kernel over one frame is stored without that dim; `[rank2]` that the tensor
//! has this rank, without leading dims of 1; `[in]` that a matrix is stored `[in, out]`.

use crate::entry::Parameter;

/// One way to name and store parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Word for people, for example `hf`.
    pub name: &'static str,
    rules: Vec<(String, String)>,
    beside: Vec<(String, Beside)>,
}

/// A tensor of a checkpoint that no parameter takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beside {
    /// It repeats the parameter of this path, and the network reads only that one.
    Again(String),
    /// Nothing reads it; words for people.
    Idle(&'static str),
}

/// Where a parameter is stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// Key in the file.
    pub key: String,
    /// Which of how many equal parts along the first dim; `[0, 1]` is the whole.
    pub part: [usize; 2],
    /// Whether the kernel is stored without its frame dim, the third one.
    pub flat: bool,
    /// Rank to which leading dims of 1 are left out; 0 when all dims stay.
    pub rank: usize,
    /// Whether a matrix is stored `[in, out]`, as in memory.
    pub straight: bool,
}

impl Layout {
    /// A layout that gives the paths themselves.
    pub fn new(name: &'static str) -> Self {
        Self { name, rules: Vec::new(), beside: Vec::new() }
    }

    /// And replaces a piece of a path, wherever it occurs; after `^` only at the beginning.
    pub fn rule(mut self, from: &str, to: &str) -> Self {
        self.rules.push((from.to_owned(), to.to_owned()));
        self
    }

    /// And replaces several pieces.
    pub fn rules(self, rules: &[(&str, &str)]) -> Self {
        rules.iter().fold(self, |layout, (from, to)| layout.rule(from, to))
    }

    /// And stores queries, keys and values of self-attention as one projection, `attn.qkv`.
    pub fn fused(self) -> Self {
        self.rules(&[
            (".attn.q.weight", ".attn.qkv.weight[0/3]"),
            (".attn.k.weight", ".attn.qkv.weight[1/3]"),
            (".attn.v.weight", ".attn.qkv.weight[2/3]"),
        ])
    }

    /// And stores the biases of queries, keys and values of an attention beside its matrices.
    pub fn own_biases(self, attention: &str) -> Self {
        let names = ["q", "k", "v"];
        let rule = |layout: Self, name: &str| {
            layout.rule(&format!(".{attention}.{name}.bias"), &format!(".{attention}.{name}_bias"))
        };
        names.into_iter().fold(self, rule)
    }

    /// And names blocks as VideoMAE of transformers does, after the given text.
    pub fn videomae_blocks(self, blocks: &str) -> Self {
        self.own_biases("attn").rule("^blocks.", blocks).rules(&[
            (".attn.proj.", ".attention.output.dense."),
            (".attn.q.", ".attention.attention.query."),
            (".attn.k.", ".attention.attention.key."),
            (".attn.v.", ".attention.attention.value."),
            (".attn.", ".attention.attention."),
            (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
        ])
    }

    /// And names blocks as CLIP of transformers does, after the given text.
    pub fn clip_blocks(self, blocks: &str) -> Self {
        self.rule("^blocks.", blocks).rules(&[
            (".norm1.", ".layer_norm1."),
            (".norm2.", ".layer_norm2."),
            (".attn.proj.", ".self_attn.out_proj."),
            (".attn.q.", ".self_attn.q_proj."),
            (".attn.k.", ".self_attn.k_proj."),
            (".attn.v.", ".self_attn.v_proj."),
        ])
    }

    /// And names an attention as PyTorch's own layer does: one input projection, `in_proj`.
    pub fn torch_attention(self, from: &str, to: &str) -> Self {
        let parts = ["q", "k", "v"].into_iter().enumerate();
        let of = |layout: Self, (i, name): (usize, &str)| {
            ["weight", "bias"].into_iter().fold(layout, |layout, kind| {
                let (from, to) = (format!("{from}{name}.{kind}"), format!("{to}in_proj_{kind}"));
                layout.rule(&from, &format!("{to}[{i}/3]"))
            })
        };
        parts.fold(self, of).rule(&format!("{from}proj."), &format!("{to}out_proj."))
    }

    /// And has a tensor that repeats a parameter: its key as it is, and the path of the parameter.
    pub fn again(mut self, key: &str, path: &str) -> Self {
        self.beside.push((key.to_owned(), Beside::Again(path.to_owned())));
        self
    }

    /// And has tensors that nothing reads: what their keys begin with, and what they are.
    pub fn idle(mut self, keys: &str, what: &'static str) -> Self {
        self.beside.push((keys.to_owned(), Beside::Idle(what)));
        self
    }

    /// What is known of a key that no parameter takes.
    pub fn beside(&self, key: &str) -> Option<&Beside> {
        let about = |(known, what): &&(String, Beside)| match what {
            Beside::Again(_) => key == known,
            Beside::Idle(_) => key.starts_with(known.as_str()),
        };
        self.beside.iter().find(about).map(|(_, what)| what)
    }

    /// And puts text before all keys.
    pub fn prefix(self, text: &str) -> Self {
        self.rule("^", text)
    }

    /// Where the parameter of a path is stored.
    pub fn slot(&self, path: &str) -> Slot {
        let mut key = path.to_owned();
        for (from, to) in &self.rules {
            key = match from.strip_prefix('^') {
                None => key.replace(from, to),
                Some(from) => match key.strip_prefix(from) {
                    Some(rest) => format!("{to}{rest}"),
                    None => key,
                },
            };
        }
        let mut slot = Slot::whole("");
        while let Some((before, note)) = key.strip_suffix(']').and_then(|key| key.rsplit_once('['))
        {
            match note.split_once('/') {
                Some((i, n)) => slot.part = [i, n].map(|number| number.parse().unwrap_or(1)),
                None => match note.strip_prefix("rank") {
                    Some(rank) => slot.rank = rank.parse().unwrap_or(0),
                    None => (slot.flat, slot.straight) = (note == "2d", note == "in"),
                },
            }
            key = before.to_owned();
        }
        Slot { key, ..slot }
    }
}

impl Slot {
    /// A parameter that is a tensor of the file by itself.
    pub fn whole(key: &str) -> Self {
        Self { key: key.to_owned(), part: [0, 1], flat: false, rank: 0, straight: false }
    }

    /// Whether the matrix is stored the other way round than in memory.
    pub fn turned(&self, parameter: &Parameter) -> bool {
        parameter.linear && !self.straight
    }

    /// Shape of a parameter as it is stored, before parts are put together.
    pub fn stored(&self, parameter: &Parameter) -> Vec<usize> {
        if self.straight { parameter.shape.clone() } else { parameter.file_shape() }
    }

    /// Shape of the tensor in the file that holds a parameter of this shape.
    pub fn file_shape(&self, mut shape: Vec<usize>) -> Vec<usize> {
        while self.rank > 0 && shape.len() > self.rank && shape[0] == 1 {
            shape.remove(0);
        }
        if let Some(first) = shape.first_mut() {
            *first *= self.part[1];
        }
        if self.flat && shape.len() == 5 && shape[2] == 1 {
            shape.remove(2);
        }
        shape
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_follow_each_other_and_notes_are_taken_off() {
        let layout = Layout::new("x")
            .rules(&[(".attn.k.weight", ".attn.qkv.weight[1/3]"), ("embed.weight", "embed.w[2d]")])
            .prefix("encoder.");
        let slot = layout.slot("blocks.0.attn.k.weight");
        assert_eq!((slot.key.as_str(), slot.part), ("encoder.blocks.0.attn.qkv.weight", [1, 3]));
        assert_eq!(slot.file_shape(vec![4, 8]), [12, 8]);
        assert_eq!(layout.slot("table[rank2]").file_shape(vec![1, 7, 8]), [7, 8]);
        assert!(layout.slot("matrix[in]").straight);
        let slot = layout.slot("embed.weight");
        assert_eq!(slot.key, "encoder.embed.w");
        assert_eq!(slot.file_shape(vec![4, 3, 1, 2, 2]), [4, 3, 2, 2]);
        assert_eq!(layout.slot("norm.weight"), Slot::whole("encoder.norm.weight"));
    }

    #[test]
    fn tensors_that_no_parameter_takes_are_known_by_key_or_beginning() {
        let layout = Layout::new("x").again("head.weight", "words").idle("old.", "a head of old");
        assert_eq!(layout.beside("head.weight"), Some(&Beside::Again("words".to_owned())));
        assert_eq!(layout.beside("old.3.bias"), Some(&Beside::Idle("a head of old")));
        assert_eq!(layout.beside("head.weight.0"), None);
    }
}
