//! Answers to questions.

use std::collections::BTreeMap;

use modules::metrics::Error;
use modules::metrics::answers::{Answer, Item, evaluate};
use serde::Deserialize;
use serde_json::json;

use super::Report;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    items: Vec<Asked>,
}

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(default = "kind")]
    kind: String,
    choices: Option<usize>,
    predicted: Given,
    right: Right,
}

fn kind() -> String {
    "questions".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected words or the number of a choice, from 0")]
enum Given {
    Choice(usize),
    Words(String),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected words, the number of a choice from 0, or a list of those")]
enum Right {
    One(Given),
    Any(Vec<Given>),
}

impl Given {
    fn answer(self) -> Answer {
        match self {
            Self::Choice(choice) => Answer::Choice(choice),
            Self::Words(words) => Answer::Open(words),
        }
    }
}

impl Asked {
    fn item(self) -> Item {
        let right = match self.right {
            Right::One(one) => vec![one.answer()],
            Right::Any(list) => list.into_iter().map(Given::answer).collect(),
        };
        let Self { kind, choices, predicted, .. } = self;
        Item { kind, choices, predicted: predicted.answer(), right }
    }
}

impl File {
    pub(super) fn report(self) -> Result<Report, Error> {
        let items: Vec<Item> = self.items.into_iter().map(Asked::item).collect();
        let found = evaluate(&items)?;
        let mut report = Report::default();
        report.add("accuracy", found.all.accuracy);
        report.add("mean_of_kinds", found.mean_of_kinds);
        report.add("majority", found.all.majority);
        for (kind, row) in &found.kinds {
            report.add(format!("accuracy[{kind}]"), row.accuracy);
            report.add(format!("majority[{kind}]"), row.majority);
        }
        report.count("questions", found.all.count);
        let counts: BTreeMap<&String, usize> =
            found.kinds.iter().map(|(kind, row)| (kind, row.count)).collect();
        report.details = json!({ "questions": counts });
        Ok(report)
    }
}
