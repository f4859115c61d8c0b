//! What the options of `data/video_clips` show to be wrong, before any file is opened.

use std::collections::BTreeSet;

use schemas::entry::OptionProblem;

use super::Config;
use crate::video::named::one_line;
use crate::video::{DialogueOptions, SoundOptions};

impl Config {
    /// Everything that is wrong.
    pub(super) fn problems(&self) -> Vec<OptionProblem> {
        let mut problems = self.count_problems();
        problems.extend(self.label_problems());
        problems.extend(self.text_problems());
        problems.extend(self.sound.iter().filter_map(SoundOptions::check));
        problems.extend(self.dialogue.iter().flat_map(DialogueOptions::check));
        if let Some(every) = self.every
            && (every == 0 || !self.frames.is_multiple_of(every))
        {
            let message = format!("`every` is {every}; {} frames are not a multiple", self.frames);
            problems.push(OptionProblem::new("every", message, "give a divisor of `frames`"));
        }
        if !(0.0..=1.0).contains(&self.flip) {
            let message = format!("`flip` is {}, not a probability from 0 to 1", self.flip);
            problems.push(OptionProblem::new("flip", message, "write 0 or 0.5"));
        }
        if let Some((message, hint)) = self.sampler().problem() {
            problems.push(OptionProblem::new("sampling", message, hint));
        }
        if let Some((message, hint)) = self.crop.problem(self.size) {
            problems.push(OptionProblem::new("crop", message, hint));
        }
        if let Some(message) = self.colours.problem() {
            let hint = "leave `colours` out or write `std: [0.229, 0.224, 0.225]`";
            problems.push(OptionProblem::new("colours", message, hint));
        }
        problems
    }

    fn count_problems(&self) -> Vec<OptionProblem> {
        let bounds = [
            ("batch", self.batch, 1..=65_536),
            ("frames", self.frames, 1..=65_536),
            ("size", self.size, 1..=8192),
            // 0 takes as many as there are cores.
            ("workers", self.workers, 0..=1024),
        ];
        let outside = bounds.into_iter().filter(|(_, value, range)| !range.contains(value));
        let problem = |(option, value, range): (&str, usize, std::ops::RangeInclusive<usize>)| {
            let (low, high) = (range.start(), range.end());
            let message = format!("`{option}` is {value}, but must be from {low} to {high}");
            OptionProblem::new(option, message, format!("give a number from {low} to {high}"))
        };
        outside.map(problem).collect()
    }

    /// Names of ports that do not come from `labels` or `texts`.
    fn own_ports(&self) -> Vec<&'static str> {
        let mut own = vec!["video", "sparse", "sample"];
        if self.sound.is_some() {
            own.extend(["waveform", "heard"]);
        }
        if self.dialogue.is_some() {
            own.extend(["dialogue", "dialogue_mask", "dialogue_labels"]);
            own.extend(["question", "question_mask"]);
        }
        own
    }

    /// Texts become two ports each, whose names nothing else has.
    fn text_problems(&self) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        let own = self.own_ports();
        for (name, text) in &self.texts {
            let letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
            let shown = one_line(name);
            let mask = format!("{name}_mask");
            let clash = |port: &str| {
                own.contains(&port)
                    || self.labels.iter().any(|label| label == port)
                    || port == mask && self.texts.contains_key(port)
            };
            if name.is_empty() || !name.chars().all(letter) {
                let message = format!("`{shown}` cannot be the name of a port");
                let hint = "name a text with letters, digits and `_`, such as `caption`";
                problems.push(OptionProblem::new("texts", message, hint));
            } else if let Some(port) = [name.as_str(), &mask].into_iter().find(|port| clash(port)) {
                let message = format!("text `{shown}` would be a second port `{port}`");
                problems.push(OptionProblem::new("texts", message, "name the text otherwise"));
            }
            problems.extend(text.check(name));
        }
        problems
    }

    /// Labels become ports, and every port has one name of its own.
    fn label_problems(&self) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        let own = self.own_ports();
        for label in &self.labels {
            let name = one_line(label);
            if own.contains(&label.as_str()) {
                let message = format!("a column named `{name}` cannot be a port of its own");
                problems.push(OptionProblem::new("labels", message, "rename the column"));
            } else if !seen.insert(label) {
                let message = format!("`labels` names `{name}` more than once");
                problems.push(OptionProblem::new("labels", message, "name each column once"));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use schemas::dims::Dims;

    use super::*;
    use crate::kind::Host;

    #[test]
    fn impossible_numbers_are_refused_and_name_their_option() {
        let named = |more: &str| {
            let base = r#"{"root": "r", "batch": 4, "frames": 4, "size": 32}"#;
            let mut value: serde_json::Value = serde_json::from_str(base).unwrap();
            let more: serde_json::Value = serde_json::from_str(more).unwrap();
            let more = more.as_object().unwrap().clone();
            value.as_object_mut().unwrap().extend(more);
            let config: Config = serde_json::from_value(value).unwrap();
            let problems = config.check(&Dims::new());
            assert!(problems.iter().all(|problem| !problem.hint.is_empty()));
            problems.into_iter().map(|problem| problem.option).collect::<Vec<_>>()
        };
        for (option, texts) in [
            ("sampling", vec![r#"{"rate": {"fps": 0}}"#, r#"{"rate": {"fps": -1.5}}"#]),
            ("sampling", vec![r#"{"dense": {"stride": 0}}"#, r#"{"dense": {"stride": 1000001}}"#]),
            ("crop", vec![r#"{"random_resized": {"scale": [0, 1], "ratio": [1, 1]}}"#]),
            ("crop", vec![r#"{"random_resized": {"scale": [0.9, 0.5], "ratio": [1, 1]}}"#]),
            ("crop", vec![r#"{"random_resized": {"scale": [0.5, 1.1], "ratio": [1, 1]}}"#]),
            ("crop", vec![r#"{"random_resized": {"scale": [0.5, 1], "ratio": [2, 1]}}"#]),
            ("crop", vec![r#"{"multi_scale": {"scales": []}}"#, r#"{"centre": {"short": 99999}}"#]),
            (
                "crop",
                vec![
                    r#"{"multi_scale": {"scales": [1, 0]}}"#,
                    r#"{"multi_scale": {"scales": [1.5]}}"#,
                ],
            ),
            ("colours", vec![r#"{"mean": [0, 0, 0], "std": [1, 0, 1]}"#]),
            ("colours", vec![r#"{"mean": [0, 0, 0], "std": [1, 1e300, 1]}"#]),
            ("batch", vec!["0", "65537"]),
            ("size", vec!["0", "8193"]),
            ("frames", vec!["0", "65537"]),
            ("workers", vec!["1025"]),
            ("labels", vec![r#"["a", "a"]"#, r#"["video"]"#, r#"["sample"]"#]),
        ] {
            for text in texts {
                assert_eq!(named(&format!(r#"{{"{option}": {text}}}"#)), [option], "{text}");
            }
        }
        assert!(named(r#"{"sampling": {"rate": {"fps": 0.5}}, "workers": 0}"#).is_empty());
        let whole = r#"{"crop": {"random_resized": {"scale": [0.08, 1], "ratio": [0.75, 1.34]}}}"#;
        assert!(named(whole).is_empty());
    }
}
