//! Mask of words: some of them hidden or exchanged, to be told from what surrounds them.
//!
//! | port     | dims  | what                                                  |
//! |----------|-------|-------------------------------------------------------|
//! | `ids`    | `B L` | words                                                 |
//! | `mask`   | `B L` | 1 = word, 0 = padding                                 |
//! | `ids`    | `B L` | output: words, some of them hidden or exchanged       |
//! | `labels` | `B L` | output: the word where it is to be told, -100 elsewhere |
//!
//! Each word is chosen with `probability`. Of the chosen 80 % become the mask token, 10 % any word,
//! 10 % stay. Padding and the first token, `[CLS]`, are never chosen. Draws are functions of (seed, node,
//! stage, step, microbatch, sample, place).
//! Source: Devlin et al. 2019, "BERT" (arXiv 1810.04805); InternVideo2 (Wang et al. 2024, arXiv
//! 2403.15377), stage 2, with one half; recipes §2.6.

use std::path::PathBuf;

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::{Frame, Frames};
use schemas::node::{Forwarded, NodeError};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::kind::{self, Call, Host};
use crate::rng::Key;
use crate::tokenizer::{Batch, MaskedText, Tokenizer};
use crate::video::named::named;
use crate::video::texts::check_tokenizer;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder, `tokenizer.json` or `vocab.txt`, with `[MASK]`, `[PAD]` and `[CLS]`: that of the ids.
    pub tokenizer: PathBuf,
    /// Share of the words that are to be told; BERT takes 0.15, InternVideo2 0.5.
    #[serde(default = "half")]
    pub probability: f64,
}

fn half() -> f64 {
    0.5
}

impl Host for Config {
    type State = MaskedText;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .stopped("ids", "B L")
            .int()
            .about("words")
            .stopped("mask", "B L")
            .int()
            .about("1 = word, 0 = padding")
            .plain("ids", "B L")
            .int()
            .about("words, some of them hidden or exchanged")
            .plain("labels", "B L")
            .int()
            .about("the word where it is to be told, -100 elsewhere")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        if !(self.probability > 0.0 && self.probability <= 1.0) {
            let message = format!("`probability` is {}, not above 0 and up to 1", self.probability);
            problems.push(OptionProblem::new("probability", message, "write 0.15 or 0.5"));
        }
        problems.extend(check_tokenizer("tokenizer", &self.tokenizer));
        problems
    }

    fn open(&self, _: &Dims, _: &Key) -> Result<MaskedText, NodeError> {
        let opened = Tokenizer::open(&self.tokenizer)
            .and_then(|tokenizer| MaskedText::new(&tokenizer, self.probability));
        opened.map_err(|error| NodeError::Data {
            what: named(&self.tokenizer),
            reason: error.to_string(),
        })
    }

    fn forward(
        &self,
        masked: &mut MaskedText,
        inputs: Frames,
        call: &Call,
    ) -> Result<Forwarded, NodeError> {
        let port = |name: &str, reason: &str| NodeError::Data {
            what: format!("port `{name}`"),
            reason: reason.to_owned(),
        };
        let take = |name: &str| inputs.get(name).ok_or_else(|| port(name, "nothing came"));
        let (ids, mask) = (take("ids")?, take("mask")?);
        let &[rows, length] = ids.shape() else {
            return Err(port("ids", "the shape is not `B L`"));
        };
        if mask.shape() != ids.shape() {
            return Err(port("mask", "the shape is not that of `ids`"));
        }
        let batch = Batch { ids: ids.to_i64(), mask: mask.to_i64(), shape: [rows, length] };
        let done = masked.batch(&batch, &call.key);
        let mut forwarded = Forwarded::default();
        for (port, values) in [("ids", done.ids), ("labels", done.labels)] {
            forwarded.frames.insert(port.to_owned(), Frame::i64([rows, length], values));
        }
        Ok(forwarded)
    }
}

/// Kind `masks/words`.
pub const ENTRY: Entry = kind::host::<Config>(include_str!("words.rs"));

#[cfg(test)]
mod tests {
    use schemas::node::At;

    use super::*;

    fn config(folder: &std::path::Path) -> Config {
        let words = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nman\nruns\nfast\nslow\n";
        std::fs::write(folder.join("vocab.txt"), words).unwrap();
        Config { tokenizer: folder.to_owned(), probability: 0.5 }
    }

    fn forward(config: &Config, call: &Call) -> [Vec<i64>; 2] {
        let mut state = config.open(&Dims::new(), &Key::new(1, "mask")).unwrap();
        let mut ids = vec![2];
        ids.extend([6, 7, 8, 9].repeat(10));
        ids.extend([3, 0, 0]);
        let mask = ids.iter().map(|id| i64::from(*id != 0)).collect::<Vec<_>>();
        let frame = |values: &[i64]| Frame::i64([2, 44], values.repeat(2));
        let inputs = [("ids", frame(&ids)), ("mask", frame(&mask))];
        let inputs = Frames::from(inputs.map(|(name, frame)| (name.to_owned(), frame)));
        let given = config.forward(&mut state, inputs, call).unwrap().frames;
        assert_eq!(given["ids"].shape(), [2, 44]);
        ["ids", "labels"].map(|port| given[port].to_i64())
    }

    #[test]
    fn words_are_hidden_by_draws_of_the_call_and_padding_stays() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        assert_eq!(config.check(&Dims::new()), []);
        let call = |microbatch| {
            let at = At { microbatch, ..At::default() };
            Call::new(Key::new(1, "mask").with_number(microbatch.into()), at)
        };
        let [ids, labels] = forward(&config, &call(0));
        assert_eq!([ids.clone(), labels.clone()], forward(&config, &call(0)));
        assert_ne!(labels, forward(&config, &call(1))[1]);
        assert_ne!(labels[..44], labels[44..], "each sample has draws of its own");
        for row in 0..2 {
            let at = |place: usize| (ids[row * 44 + place], labels[row * 44 + place]);
            assert_eq!([at(0), at(42), at(43)], [(2, -100), (0, -100), (0, -100)]);
        }
        let chosen = labels.iter().filter(|label| **label != -100).count();
        assert!((20..65).contains(&chosen), "{chosen} of 82");
        assert!(ids.iter().filter(|id| **id == 4).count() > chosen / 2);
    }

    #[test]
    fn wrong_options_and_inputs_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let good = config(folder.path());
        for (config, option) in [
            (Config { probability: 0.0, ..good.clone() }, "probability"),
            (Config { probability: f64::NAN, ..good.clone() }, "probability"),
            (Config { tokenizer: folder.path().join("gone.json"), ..good.clone() }, "tokenizer"),
        ] {
            let problems = config.check(&Dims::new());
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].option, option);
        }
        std::fs::write(folder.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n").unwrap();
        let error = good.open(&Dims::new(), &Key::new(1, "mask")).unwrap_err().to_string();
        assert!(error.contains("no `mask` token"), "{error}");
    }
}
